"""Which of a run's evaluations counts, and when a run has seen enough.

Decided on the host from the figures of the evaluations; the test split is never among them.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from dl.errors import UserError

FINAL_SPLIT = "test"
Figures = Mapping[str, Mapping[str, np.ndarray]]
"""By split and metric: a scalar, or one value for each seed that is trained at the same time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeepBest:
    """Keep the variables of the best evaluation; the run ends with those, however it ends.

    Attributes:
      metric: what is best, such as loss or accuracy.
      split: on which split; never test.
      mode: whether the smallest or the largest value is best; None: the smallest loss or error, the largest
        of anything else.
      patience: evaluations without improvement after which the run stops; None: it goes on to its end.
      min_delta: how much better counts as an improvement.
    """

    metric: str = "loss"
    split: str = "validation"
    mode: Literal["min", "max"] | None = None
    patience: int | None = None
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        _refuse_test(self.split)
        if self.patience is not None and self.patience < 1:
            raise UserError(f"patience={self.patience} is out of range; it must be at least 1, or None")

    @property
    def sign(self) -> float:
        """1 where large values are good, -1 where small ones are."""
        mode = self.mode or ("min" if "loss" in self.metric or "error" in self.metric else "max")
        return 1.0 if mode == "max" else -1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """Stop as soon as a metric is good enough.

    Attributes:
      value: at most this for a loss or error, at least this for anything else.
      metric: such as loss or accuracy.
      split: `train` for the mean over the steps since the last evaluation; never test.
    """

    value: float
    metric: str = "loss"
    split: str = "validation"

    def __post_init__(self) -> None:
        _refuse_test(self.split)

    def is_met(self, figures: Figures) -> bool:
        """Whether every seed has reached the value."""
        sign = KeepBest(metric=self.metric, split=self.split).sign
        return bool(np.all(sign * look_up(figures, self.split, self.metric) >= sign * self.value))


@dataclasses.dataclass
class Best:
    """The best evaluation so far, for each seed that is trained at the same time (usually one).

    Attributes:
      value: of the metric; None before the first finite one.
      step: when it was seen.
      waited: evaluations since.
    """

    value: list[float | None]
    step: list[int]
    waited: list[int]

    @classmethod
    def none_yet(cls, num_members: int) -> "Best":
        return cls([None] * num_members, [0] * num_members, [0] * num_members)

    def update(self, rule: KeepBest, figures: Figures, step: int) -> np.ndarray:
        """Takes an evaluation in; returns which seeds have improved. One that has stopped never does."""
        values = np.atleast_1d(look_up(figures, rule.split, rule.metric))
        improved = np.zeros(len(values), bool)
        for k, value in enumerate(values.tolist()):
            if self._has_stopped(rule, k):
                continue
            best = self.value[k]
            # Without a best, any number is one; a NaN never is.
            if np.isfinite(value) and (best is None or rule.sign * value > rule.sign * best + rule.min_delta):
                self.value[k], self.step[k], self.waited[k] = value, step, 0
                improved[k] = True
            else:
                self.waited[k] += 1
        return improved

    def is_over(self, rule: KeepBest) -> bool:
        """Whether every seed has lost its patience."""
        return all(self._has_stopped(rule, k) for k in range(len(self.waited)))

    def _has_stopped(self, rule: KeepBest, k: int) -> bool:
        return rule.patience is not None and self.waited[k] >= rule.patience

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def look_up(figures: Figures, split: str, metric: str) -> np.ndarray:
    """Returns a figure; raises UserError, saying which there are, where there is none."""
    if split not in figures:
        raise UserError(f"split={split!r} is not evaluated; choose one of {', '.join(figures)}")
    if metric not in figures[split]:
        raise UserError(f"metric={metric!r} is not measured; choose one of {', '.join(figures[split])}")
    return np.asarray(figures[split][metric])


def _refuse_test(split: str) -> None:
    if split == FINAL_SPLIT:
        raise UserError(
            f"split={split!r} must not choose anything: it is read once, at the end; choose validation"
        )
