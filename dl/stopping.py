"""Which of a run's evaluations counts, and when a run has seen enough.

Decided on the host from the metrics of the evaluations; the test split is never among them. Whether small or
large values are good is stated where a metric is made, or here by `mode`; it is never read from a name.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from dl.errors import UserError

FINAL_SPLIT = "test"
MODES = ("min", "max")
MetricsOfSplits = Mapping[str, Mapping[str, np.ndarray]]
"""By split and metric: a scalar, or one value for each seed that is trained at the same time."""
Directions = Mapping[str, Literal["min", "max"] | None]
"""By metric: whether the smallest or the largest value is best; None where the metric does not state it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """A metric of a split that something is decided by.

    Attributes:
      metric: such as loss or accuracy.
      split: of which split; never test.
      mode: whether the smallest or the largest value is best; None: as the metric states where it is made.
    """

    metric: str = "loss"
    split: str = "validation"
    mode: Literal["min", "max"] | None = None

    def __post_init__(self) -> None:
        if self.split == FINAL_SPLIT:
            raise UserError(
                f"split={self.split!r} must not choose anything: it is read once, at the end; choose "
                "validation"
            )
        if self.mode not in (None, *MODES):
            raise UserError(
                f"mode={self.mode!r} is not understood; it must be 'min' or 'max', or None for what the "
                "metric states"
            )

    @property
    def sign(self) -> float:
        """1 where large values are good, -1 where small ones are.

        Raises:
          UserError: `mode` is not stated; `resolved` states it.
        """
        return sign_of(self.metric, {}, self.mode)

    def resolved(self, directions: Directions):  # type: ignore[no-untyped-def]
        """Returns the rule with `mode` stated.

        Raises:
          UserError: neither the rule nor its metric states it.
        """
        sign = sign_of(self.metric, directions, self.mode)
        return dataclasses.replace(self, mode="max" if sign > 0 else "min")


def sign_of(metric: str, directions: Directions, mode: str | None = None) -> float:
    """Returns 1 where large values of a metric are good, -1 where small ones are.

    Args:
      metric: its name.
      directions: as the metrics state them.
      mode: in place of that, where it is given.

    Raises:
      UserError: nobody states it.
    """
    # `loss` is what training makes small, whoever wrote it.
    stated = mode or directions.get(metric) or ("min" if metric == "loss" else None)
    if stated is None:
        raise UserError(
            f"metric={metric!r} does not state whether small or large values are good; give mode='min' or "
            "mode='max', or make the metric by Mean.of(values, mask, better='min')"
        )
    return 1.0 if stated == "max" else -1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeepBest(Rule):
    """Keep the variables of the best evaluation; the run ends with those, however it ends.

    An evaluation whose metric is not a finite number is never the best one; where none is finite, the run
    ends with its last variables and says so.

    Attributes:
      metric: what is best, such as loss or accuracy.
      split: on which split; never test.
      mode: whether the smallest or the largest value is best; None: as the metric states where it is made.
      patience: evaluations without improvement after which the run stops; None: it goes on to its end.
      min_delta: how much better counts as an improvement, at least 0.
    """

    patience: int | None = None
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patience is not None and (
            isinstance(self.patience, bool) or self.patience != int(self.patience) or self.patience < 1
        ):
            raise UserError(
                f"patience={self.patience} is out of range; it must be a whole number of at least 1, or None"
            )
        if not (math.isfinite(self.min_delta) and self.min_delta >= 0):
            raise UserError(f"min_delta={self.min_delta} is out of range; it must be a number of at least 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StopAt(Rule):
    """Stop as soon as a metric is good enough.

    Attributes:
      value: at most this where small values are good, at least this where large ones are.
      metric: such as loss or accuracy.
      split: `train` for the mean over the steps since the last evaluation; never test.
      mode: whether small or large values are good; None: as the metric states where it is made.
    """

    value: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if math.isnan(self.value):
            raise UserError(f"value={self.value} is reached by nothing; it must be a number")

    def is_met(self, metrics: MetricsOfSplits) -> bool:
        """Whether every seed has reached the value."""
        return bool(np.all(self.sign * look_up(metrics, self.split, self.metric) >= self.sign * self.value))


@dataclasses.dataclass(frozen=True)
class Best:
    """The best evaluation so far, for each seed that is trained at the same time (usually one).

    Attributes:
      value: of the metric; None before the first finite one.
      step: when it was seen; before the first finite one the newest.
      waited: evaluations since.
    """

    value: list[float | None]
    step: list[int]
    waited: list[int]

    @classmethod
    def none_yet(cls, num_seeds: int) -> "Best":
        return cls([None] * num_seeds, [0] * num_seeds, [0] * num_seeds)

    def after(self, rule: KeepBest, metrics: MetricsOfSplits, step: int) -> tuple["Best", np.ndarray]:
        """Returns the best after one more evaluation, and which seeds that evaluation is now the best of.

        The latter has the shape of the metric. Until a seed has a finite value, its newest evaluation stands
        in for the best. A seed that has stopped takes no evaluation any more.
        """
        values = look_up(metrics, rule.split, rule.metric)
        best = Best(list(self.value), list(self.step), list(self.waited))
        is_taken = np.zeros(values.size, bool)
        for k, value in enumerate(np.atleast_1d(values).tolist()):
            if self._has_stopped(rule, k):
                continue
            before = self.value[k]
            # Without a best, any number is one; a NaN never is.
            is_better = before is None or rule.sign * value > rule.sign * before + rule.min_delta
            if np.isfinite(value) and is_better:
                best.value[k], best.step[k], best.waited[k] = value, step, 0
                is_taken[k] = True
            else:
                best.waited[k] += 1
                if before is None:
                    best.step[k], is_taken[k] = step, True
        return best, is_taken.reshape(values.shape)

    def is_over(self, rule: KeepBest) -> bool:
        """Whether every seed has lost its patience."""
        return all(self._has_stopped(rule, k) for k in range(len(self.waited)))

    def _has_stopped(self, rule: KeepBest, k: int) -> bool:
        return rule.patience is not None and self.waited[k] >= rule.patience

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def look_up(metrics: MetricsOfSplits, split: str, metric: str) -> np.ndarray:
    """Returns a metric; raises UserError, saying which there are, where there is none."""
    if split not in metrics:
        raise UserError(f"split={split!r} is not evaluated; choose one of {', '.join(metrics)}")
    if metric not in metrics[split]:
        raise UserError(f"metric={metric!r} is not measured; choose one of {', '.join(metrics[split])}")
    return np.asarray(metrics[split][metric])
