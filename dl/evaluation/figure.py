"""A figure with its interval, and intervals of figures that are no plain means: by their influence.

A smooth function of means over examples differs from its true value by about the mean of an influence that
each example has on it (Hampel 1974; the delta method), whose spread gives the standard error. The interval is
laid where the figure is nearly normal: the logarithm of what is positive, the log-odds of a share.

Shapes: N examples.
"""

from typing import Literal, NamedTuple

import numpy as np


class Figure(NamedTuple):
    """A figure with the bounds of its 95 % interval.

    Attributes:
      value: of the figure.
      low: NaN where no interval is known, and so is `high`.
      high: the other bound.
      better: whether small or large values are good.
      method: of the interval, in words; empty without one.
    """

    value: float
    low: float
    high: float
    better: Literal["min", "max"]
    method: str


def no_interval(value: float, better: Literal["min", "max"]) -> Figure:
    return Figure(float(value), float("nan"), float("nan"), better, "")


def half_width(influence_N: np.ndarray, confidence: float = 0.95) -> float:
    """Returns t s / √n of the influences, t at n - 1 degrees of freedom; NaN of fewer than two examples."""
    from scipy import stats

    size = len(influence_N)
    if size < 2:
        return float("nan")
    spread = np.std(influence_N, ddof=1) / np.sqrt(size)
    return float(stats.t.ppf((1 + confidence) / 2, size - 1) * spread)


def positive_interval(value: float, influence_N: np.ndarray) -> tuple[float, float]:
    """Returns the interval of a positive figure: symmetric for its logarithm, which `influence_N` is of."""
    half = half_width(influence_N)
    return float(value * np.exp(-half)), float(value * np.exp(half))


def share_interval(value: float, half: float) -> tuple[float, float]:
    """Returns the interval of a share in [0, 1]: symmetric for its log-odds.

    Args:
      value: the share; at 0 or 1 the bounds are NaN, since the spread says nothing there.
      half: the half width of its interval on its own scale, by the delta method.
    """
    if not 0 < value < 1:
        return float("nan"), float("nan")
    centre, half = np.log(value / (1 - value)), half / (value * (1 - value))
    return tuple(float(1 / (1 + np.exp(-(centre + sign * half)))) for sign in (-1, 1))  # type: ignore[return-value]
