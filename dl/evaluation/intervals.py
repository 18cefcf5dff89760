"""Confidence intervals of metrics, on the host, by SciPy.

They treat the examples (`wilson`, `ratio_interval`, `bootstrap`) or the seeds (`t_interval`) as a random
sample.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from dl.errors import UserError


class Interval(NamedTuple):
    """A metric with the bounds of its confidence interval."""

    estimate: float
    low: float
    high: float


def wilson(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Returns a proportion with its score interval (Wilson 1927; Newcombe 1998, method 3).

    The bounds lie in [0, 1]. Without trials the estimate is NaN and the interval is [0, 1].

    Raises:
      UserError: `successes` is not in [0, `trials`].
    """
    from scipy import stats

    check_confidence(confidence)
    if not 0 <= successes <= trials:
        raise UserError(
            f"successes={successes} is not in [0, trials={trials}]; check the order of the arguments and "
            "the counts"
        )
    if trials == 0:
        return Interval(float("nan"), 0.0, 1.0)
    interval = stats.binomtest(int(successes), int(trials)).proportion_ci(confidence, method="wilson")
    return Interval(successes / trials, float(interval.low), float(interval.high))


def t_interval(values: ArrayLike, confidence: float = 0.95, is_share: bool = False) -> Interval:
    """Returns the mean of a metric over seeds with its interval: mean ± t s / √n (Student 1908).

    t is the quantile at n - 1 degrees of freedom, s is the standard deviation with n - 1. The interval of a
    single value is infinite.

    Args:
      values: the metric of each seed.
      confidence: the confidence level of the interval, such as 0.95.
      is_share: whether the metric is a proportion, whose bounds are clipped to [0, 1].

    Raises:
      UserError: there are no values.
    """
    from scipy import stats

    check_confidence(confidence)
    values = np.asarray(values, np.float64).ravel()
    if not values.size:
        raise UserError("values is empty and has no mean; give the metric of at least one seed")
    mean = float(values.mean())
    low, high = float("-inf"), float("inf")
    if values.size > 1:
        t = stats.t.ppf((1 + confidence) / 2, values.size - 1)
        half = float(t * values.std(ddof=1) / np.sqrt(values.size))
        low, high = mean - half, mean + half
    return Interval(mean, max(low, 0.0), min(high, 1.0)) if is_share else Interval(mean, low, high)


def ratio_interval(
    ratio: float,
    variance: float,
    num: int,
    freedom: float,
    is_share: bool = False,
    confidence: float = 0.95,
) -> Interval:
    """Returns a ratio of sums over examples with its interval, from the variance of the ratio.

    The interval is Student's t interval. A proportion in [0, 1] has Wilson's score interval at its effective
    number of trials: p (1 - p) / variance, times (z / t)² for the degrees of freedom (Korn & Graubard
    1998; Franco et al. 2019, 2.3). If the proportion is 0 or 1, the number of trials is the number of
    examples.

    Args:
      ratio: Σ total / Σ weight.
      variance: the estimated variance of the ratio.
      num: N, the number of examples.
      freedom: the degrees of freedom of the variance, N - 1 or fewer.
      is_share: whether the ratio of every example lies in [0, 1].
      confidence: the confidence level of the interval, such as 0.95.
    """
    from scipy import stats

    check_confidence(confidence)
    t = float(stats.t.ppf((1 + confidence) / 2, freedom))
    if not is_share:
        half = t * variance**0.5
        return Interval(ratio, ratio - half, ratio + half)
    z = float(stats.norm.ppf((1 + confidence) / 2))
    spread = ratio * (1 - ratio)
    size = num if spread <= 0 or variance <= 0 else spread / variance * (z / t) ** 2
    centre = (ratio + z**2 / (2 * size)) / (1 + z**2 / size)
    half = z / (1 + z**2 / size) * (max(spread, 0.0) / size + z**2 / (4 * size**2)) ** 0.5
    # Rounding may move a bound out of [0, 1], or past the ratio.
    return Interval(ratio, max(min(centre - half, ratio), 0.0), min(max(centre + half, ratio), 1.0))


def bootstrap(
    metric: Callable[..., float],
    *values: ArrayLike,
    confidence: float = 0.95,
    num_resamples: int = 9_999,
    seed: int = 0,
) -> Interval:
    """Returns any metric of the examples with its percentile interval (Efron & Tibshirani 1993, 13.3).

    The examples are drawn with replacement, the same ones from all arrays. With few examples the interval is
    too narrow. The same seed gives the same interval.

    Args:
      metric: computes the metric from arrays like `values`, which hold the drawn examples.
      values: arrays of equal length with a row for each example, such as labels and predictions.
      confidence: the confidence level of the interval, such as 0.95.
      num_resamples: number of resamples, each of which computes the metric.
      seed: random seed of the draws.

    Raises:
      UserError: the arrays differ in length, or have fewer than two examples.
    """
    from scipy import stats

    check_confidence(confidence)
    arrays = [np.asarray(value) for value in values]
    lengths = sorted({len(array) for array in arrays})
    if len(lengths) != 1:
        raise UserError(f"values have the lengths {lengths}; give arrays with one row for each example")
    if lengths[0] < 2:
        raise UserError(f"values have {lengths[0]} examples, but resampling needs at least 2; give more")

    def of_examples(index: np.ndarray) -> float:
        return float(metric(*(array[index] for array in arrays)))

    examples = np.arange(lengths[0])
    interval = stats.bootstrap(
        (examples,),
        of_examples,
        n_resamples=num_resamples,
        vectorized=False,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(of_examples(examples), float(interval.low), float(interval.high))


def check_confidence(confidence: float) -> None:
    """Raises UserError if a confidence level is not between 0 and 1."""
    if not 0 < confidence < 1:
        raise UserError(f"confidence={confidence} is not between 0 and 1; write 0.95 for 95 %")
