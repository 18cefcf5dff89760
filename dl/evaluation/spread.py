"""The interval of a mean that follows from what was counted: sums over examples that add up over batches.

Shapes: N examples; … stands for the members that were trained at the same time, if there are any.
"""

import dataclasses
import math

import numpy as np

from dl.evaluation.intervals import Interval, ratio_interval, wilson

WILSON = "Wilson, over examples"
STUDENT = "Student, over examples"
CLUSTERED = "Student, clustered by example"
EFFECTIVE = "Wilson, effective sample size over examples"


@dataclasses.dataclass(frozen=True)
class Spread:
    """What N examples add to a metric that is Σ total / Σ weight: its moments, in double precision.

    Attributes:
      num: examples with a weight.
      total: Σ total.
      weight: Σ weight.
      total_total: Σ total².
      total_weight: Σ total · weight.
      weight_weight: Σ weight².
      is_binary: whether every weight is 1 and every total 0 or 1.
      is_share: whether every total lies between 0 and its weight, so that the metric lies in [0, 1].
      is_known: whether every example tells what it adds.
    """

    num: np.ndarray
    total: np.ndarray
    weight: np.ndarray
    total_total: np.ndarray
    total_weight: np.ndarray
    weight_weight: np.ndarray
    is_binary: np.ndarray
    is_share: np.ndarray
    is_known: bool

    @classmethod
    def of(cls, totals: np.ndarray, weights: np.ndarray) -> "Spread":
        """Returns the moments of totals and weights, both of shape … × N."""
        totals, weights = np.asarray(totals, np.float64), np.asarray(weights, np.float64)
        counts = weights != 0
        is_known = not np.isnan(weights).any()
        is_zero_or_one = ((totals == 0) | (totals == 1)) & (weights == 1)
        return cls(
            counts.sum(-1),
            totals.sum(-1),
            weights.sum(-1),
            (totals**2).sum(-1),
            (totals * weights).sum(-1),
            (weights**2).sum(-1),
            (is_zero_or_one | ~counts).all(-1),
            (((totals >= 0) & (totals <= weights)) | ~counts).all(-1),
            is_known,
        )

    def __add__(self, other: "Spread") -> "Spread":
        return Spread(
            self.num + other.num,
            self.total + other.total,
            self.weight + other.weight,
            self.total_total + other.total_total,
            self.total_weight + other.total_weight,
            self.weight_weight + other.weight_weight,
            self.is_binary & other.is_binary,
            self.is_share & other.is_share,
            self.is_known and other.is_known,
        )

    def interval(self, confidence: float = 0.95) -> tuple[Interval, str] | None:
        """Returns the interval of the metric of one run, and its method in words; None where there is none.

        Of zeros and ones, one for each example, Wilson's. Of anything else from the spread over the examples,
        each with its weight: the linearised variance of a ratio (Cochran 1977, eq. 6.13), in which a sequence
        of tokens counts as one example. A share stays within [0, 1].
        """
        num, weight = int(self.num), float(self.weight)
        if num < 2 or weight <= 0 or not math.isfinite(float(self.total_total)):
            return None
        if self.is_binary:
            return wilson(round(float(self.total)), num, confidence), WILSON
        ratio = float(self.total) / weight
        squares = float(self.total_total) - 2 * ratio * float(self.total_weight)
        squares += ratio**2 * float(self.weight_weight)
        variance = num / (num - 1) * max(squares, 0.0) / weight**2
        interval = ratio_interval(ratio, variance, num, bool(self.is_share), confidence)
        if self.is_share:
            return interval, EFFECTIVE
        # Equal weights: Σ weight² · N = (Σ weight)², up to rounding.
        is_even = math.isclose(float(self.weight_weight) * num, weight**2, rel_tol=1e-9)
        return interval, STUDENT if is_even else CLUSTERED
