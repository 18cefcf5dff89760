"""Model selection and early stopping: which evaluation of a run is the best one, and when a run stops.

Both are decided on the host from the metrics of the evaluations, and never from the test split. The code that
makes a metric states whether small or large values are good; `mode` overrides it. The name of a metric is
never used for this.
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
"""Metrics by split and name: a scalar, or one value for each seed that is trained at the same time."""
Directions = Mapping[str, Literal["min", "max"] | None]
"""Directions by metric: whether small or large values are good. `None` means that it is not stated."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """A rule that decides by a metric of a split.

    Attributes:
      metric: name of the metric, such as loss or accuracy.
      split: name of the split; never test.
      mode: whether small ("min") or large ("max") values are good. `None` means the direction that the metric
        states.
    """

    metric: str = "loss"
    split: str = "validation"
    mode: Literal["min", "max"] | None = None

    def __post_init__(self) -> None:
        if self.split == FINAL_SPLIT:
            raise UserError(
                f"split={self.split!r} cannot be used for model selection or early stopping, because it is "
                "evaluated once, at the end; choose validation"
            )
        if self.mode not in (None, *MODES):
            raise UserError(
                f"mode={self.mode!r} is not understood; it must be 'min' or 'max', or None for the direction "
                "that the metric states"
            )

    @property
    def sign(self) -> float:
        """1 if large values are good, -1 if small values are good.

        Raises:
          UserError: `mode` is not stated. `resolved` returns a rule that states it.
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
    """Returns 1 if large values of a metric are good, -1 if small values are good.

    Args:
      metric: name of the metric.
      directions: directions that the metrics state.
      mode: direction that overrides them. `None` means the direction that the metric states.

    Raises:
      UserError: the direction is not stated.
    """
    # Training minimises `loss`, so its direction need not be stated.
    stated = mode or directions.get(metric) or ("min" if metric == "loss" else None)
    if stated is None:
        raise UserError(
            f"metric={metric!r} does not state whether small or large values are good; set mode='min' or "
            "mode='max', or make the metric by Mean.of(values, mask, better='min')"
        )
    return 1.0 if stated == "max" else -1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeepBest(Rule):
    """Keep the variables of the best evaluation. The run always ends with these variables.

    An evaluation whose metric is not finite is never the best one. If no evaluation has a finite metric, the
    run ends with its last variables and reports this.

    Attributes:
      metric: name of the metric that is compared, such as loss or accuracy.
      split: name of the split; never test.
      mode: whether small ("min") or large ("max") values are good. `None` means the direction that the metric
        states.
      patience: number of evaluations without improvement after which the run stops. `None` means that it does
        not stop early.
      min_delta: smallest difference that counts as an improvement, at least 0.
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
    """Stop as soon as a metric reaches a value.

    Attributes:
      value: value to reach: an upper bound if small values are good, a lower bound if large values are good.
      metric: name of the metric, such as loss or accuracy.
      split: name of the split; never test. `train` means the mean over the steps since the last evaluation.
      mode: whether small ("min") or large ("max") values are good. `None` means the direction that the metric
        states.
    """

    value: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if math.isnan(self.value):
            raise UserError(f"value={self.value} can never be reached; it must be a number")

    def is_met(self, metrics: MetricsOfSplits) -> bool:
        """Whether every seed has reached the value."""
        return bool(np.all(self.sign * look_up(metrics, self.split, self.metric) >= self.sign * self.value))


@dataclasses.dataclass(frozen=True)
class Best:
    """The best evaluation so far, for each seed that is trained at the same time (usually one).

    Attributes:
      value: best value of the metric. `None` means that no value was finite yet.
      step: step of that evaluation, or of the newest evaluation if no value was finite yet.
      waited: number of evaluations since then.
    """

    value: list[float | None]
    step: list[int]
    waited: list[int]

    @classmethod
    def none_yet(cls, num_seeds: int) -> "Best":
        return cls([None] * num_seeds, [0] * num_seeds, [0] * num_seeds)

    def after(self, rule: KeepBest, metrics: MetricsOfSplits, step: int) -> tuple["Best", np.ndarray]:
        """Returns the best evaluations after one more evaluation, and for which seeds that one is the best.

        The second result has the shape of the metric. Until a seed has a finite value, its newest evaluation
        is used as the best one. A seed that has stopped ignores later evaluations.
        """
        values = look_up(metrics, rule.split, rule.metric)
        best = Best(list(self.value), list(self.step), list(self.waited))
        is_taken = np.zeros(values.size, bool)
        for k, value in enumerate(np.atleast_1d(values).tolist()):
            if self._has_stopped(rule, k):
                continue
            before = self.value[k]
            # The first finite value is always the best one. A NaN never is.
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
        """Whether every seed has exhausted its patience."""
        return all(self._has_stopped(rule, k) for k in range(len(self.waited)))

    def _has_stopped(self, rule: KeepBest, k: int) -> bool:
        return rule.patience is not None and self.waited[k] >= rule.patience

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def look_up(metrics: MetricsOfSplits, split: str, metric: str) -> np.ndarray:
    """Returns a metric. Raises UserError with the known names if the split or the metric does not exist."""
    if split not in metrics:
        raise UserError(f"split={split!r} is not evaluated; choose one of {', '.join(metrics)}")
    if metric not in metrics[split]:
        raise UserError(f"metric={metric!r} is not measured; choose one of {', '.join(metrics[split])}")
    return np.asarray(metrics[split][metric])
