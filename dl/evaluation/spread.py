"""The interval of a metric from sums over its examples, which add up over batches.

Shapes: N examples; … is the axis of M runs if a population is trained.
"""

import dataclasses
import math

import numpy as np

from dl.evaluation.intervals import Interval, ratio_interval, wilson

WILSON = "Wilson, over examples"
STUDENT = "Student, over examples"
CLUSTERED = "Student, clustered by example"
EFFECTIVE = "Wilson, effective sample size over examples"
_ORDERS = (1, 2, 4)


@dataclasses.dataclass(frozen=True)
class Spread:
    """Moments of the contributions of N examples to a metric Σ total / Σ weight, in double precision.

    Attributes:
      num: number of examples with a weight, shape ….
      sums: Σ total^(k - j) weight^j for k = 1, 2 and 4, each for j = 0 to k: shapes … × (k + 1).
      is_binary: whether every weight is 1 and every total 0 or 1.
      is_share: whether every example adds whole counts (k of n), so that the metric is a proportion in [0,
        1].
      is_known: whether the contribution of every example is known.
    """

    num: np.ndarray
    sums: tuple[np.ndarray, ...]
    is_binary: np.ndarray
    is_share: np.ndarray
    is_known: bool

    @classmethod
    def of(cls, totals: np.ndarray, weights: np.ndarray) -> "Spread":
        """Returns the moments of totals and weights, both of shape … × N."""
        totals, weights = np.asarray(totals, np.float64), np.asarray(weights, np.float64)
        counts = weights != 0
        is_count = (totals >= 0) & (totals <= weights)
        is_count &= (totals == np.round(totals)) & (weights == np.round(weights))
        is_zero_or_one = ((totals == 0) | (totals == 1)) & (weights == 1)
        with np.errstate(invalid="ignore", over="ignore"):  # such a metric has no interval
            sums = tuple(
                np.stack([(totals ** (k - j) * weights**j).sum(-1) for j in range(k + 1)], -1)
                for k in _ORDERS
            )
        return cls(
            counts.sum(-1),
            sums,
            (is_zero_or_one | ~counts).all(-1),
            (is_count | ~counts).all(-1),
            not np.isnan(weights).any(),
        )

    def __add__(self, other: "Spread") -> "Spread":
        return Spread(
            self.num + other.num,
            tuple(one + another for one, another in zip(self.sums, other.sums, strict=True)),
            self.is_binary & other.is_binary,
            self.is_share & other.is_share,
            self.is_known and other.is_known,
        )

    def interval(self, confidence: float = 0.95) -> tuple[Interval, str] | None:
        """Returns the interval of the metric of one run, and its method as text; `None` if there is none.

        Zeros and ones, one for each example, have Wilson's interval. Other metrics have an interval from the
        linearised variance of a ratio (Cochran 1977, eq. 6.13), in which a sequence of tokens is one example.
        Its degrees of freedom follow from the kurtosis κ: the variance of s² is
        (κ - (N - 3) / (N - 1)) s⁴ / N (Satterthwaite 1946), because a few outliers make s² uncertain. The
        interval of a proportion stays within [0, 1].
        """
        num = int(self.num)
        total, weight = self.sums[0].tolist()
        if num < 2 or weight <= 0 or not all(np.isfinite(sums).all() for sums in self.sums):
            return None
        if self.is_binary:
            return wilson(round(total), num, confidence), WILSON
        ratio = total / weight
        squares, fourths = (_deviation(sums, ratio) for sums in self.sums[1:])
        variance = num / (num - 1) * squares / weight**2
        freedom = float(num - 1)
        if squares > 0 and fourths > 0:
            kurtosis = num * fourths / squares**2
            freedom = max(min(freedom, 2 * num / max(kurtosis - (num - 3) / (num - 1), 1e-9)), 1.0)
        interval = ratio_interval(ratio, variance, num, freedom, bool(self.is_share), confidence)
        if self.is_share:
            return interval, EFFECTIVE
        # Equal weights: Σ weight² · N = (Σ weight)², up to rounding.
        is_even = math.isclose(float(self.sums[1][2]) * num, weight**2, rel_tol=1e-9)
        return interval, STUDENT if is_even else CLUSTERED


def _deviation(sums: np.ndarray, ratio: float) -> float:
    """Returns Σ (total - ratio weight)^k from the sums of order k, for an even k; it is at least 0."""
    order = len(sums) - 1
    terms = [math.comb(order, j) * (-ratio) ** j * float(sums[j]) for j in range(order + 1)]
    return max(math.fsum(terms), 0.0)
