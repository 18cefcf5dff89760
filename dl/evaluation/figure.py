"""A metric with its interval, and intervals of metrics that are not plain means: by their influence function.

A smooth function of means over examples differs from its true value by about the mean influence of the
examples (Hampel 1974; the delta method). The spread of the influences gives the standard error. The interval
is computed on a scale where the metric is nearly normal: the logarithm of a positive metric, the log-odds of
a proportion.

Shapes: N examples.
"""

from typing import Literal, NamedTuple

import numpy as np


class Figure(NamedTuple):
    """A metric with the bounds of its 95 % interval.

    Attributes:
      value: the value of the metric.
      low: the lower bound; NaN if the interval is not known.
      high: the upper bound; NaN if the interval is not known.
      better: whether small or large values are good.
      method: the method of the interval, as text; empty if there is no interval.
    """

    value: float
    low: float
    high: float
    better: Literal["min", "max"]
    method: str


def no_interval(value: float, better: Literal["min", "max"]) -> Figure:
    return Figure(float(value), float("nan"), float("nan"), better, "")


def half_width(influence_N: np.ndarray, confidence: float = 0.95) -> float:
    """Returns t s / √n of the influences, t at n - 1 degrees of freedom; NaN for fewer than two examples."""
    from scipy import stats

    size = len(influence_N)
    if size < 2:
        return float("nan")
    spread = np.std(influence_N, ddof=1) / np.sqrt(size)
    return float(stats.t.ppf((1 + confidence) / 2, size - 1) * spread)


def positive_interval(value: float, influence_N: np.ndarray) -> tuple[float, float]:
    """Returns the interval of a positive metric, symmetric for its logarithm, which `influence_N` is of."""
    half = half_width(influence_N)
    return float(value * np.exp(-half)), float(value * np.exp(half))


def share_interval(value: float, half: float) -> tuple[float, float]:
    """Returns an interval of a proportion in [0, 1], symmetric in its log-odds.

    Args:
      value: the proportion. At 0 or 1 the bounds are NaN, because the spread is not informative there.
      half: the half width of the interval of the proportion itself, by the delta method.
    """
    if not 0 < value < 1:
        return float("nan"), float("nan")
    centre, half = np.log(value / (1 - value)), half / (value * (1 - value))
    return tuple(float(1 / (1 + np.exp(-(centre + sign * half)))) for sign in (-1, 1))  # type: ignore[return-value]
