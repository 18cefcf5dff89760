"""How far a figure can be trusted, and whether two differ: intervals and tests, on the host, by SciPy.

What they take as random: which examples were drawn (`wilson`, `bootstrap`, `mcnemar`), or which seeds
(`t_interval`, `paired_t`, `paired_permutation`). Tests are two-sided.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from dl.errors import UserError


class Interval(NamedTuple):
    """A figure with the bounds of its confidence interval."""

    estimate: float
    low: float
    high: float


def wilson(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Returns a proportion with its score interval (Wilson 1927; Newcombe 1998, method 3).

    Within [0, 1] also at 0 and at `trials`. Of no trials the estimate is NaN and the interval [0, 1].

    Raises:
      UserError: `successes` is not in [0, `trials`].
    """
    from scipy import stats

    _check_confidence(confidence)
    if not 0 <= successes <= trials:
        raise UserError(f"successes={successes} is not in [0, trials={trials}]; swap them or count again")
    if trials == 0:
        return Interval(float("nan"), 0.0, 1.0)
    interval = stats.binomtest(int(successes), int(trials)).proportion_ci(confidence, method="wilson")
    return Interval(successes / trials, float(interval.low), float(interval.high))


def t_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Returns the mean of a figure over seeds: mean ± t s / √n (Student 1908).

    t is the quantile at n - 1 degrees of freedom, s the standard deviation with n - 1. One value bounds
    nothing: its interval is infinite.

    Raises:
      UserError: there is no value.
    """
    from scipy import stats

    _check_confidence(confidence)
    values = np.asarray(values, np.float64).ravel()
    if not values.size:
        raise UserError("values=[] has no mean; give the figure of one seed at least")
    mean = float(values.mean())
    if values.size == 1:
        return Interval(mean, float("-inf"), float("inf"))
    t = stats.t.ppf((1 + confidence) / 2, values.size - 1)
    half = float(t * values.std(ddof=1) / np.sqrt(values.size))
    return Interval(mean, mean - half, mean + half)


def bootstrap(
    metric: Callable[..., float],
    *values: ArrayLike,
    confidence: float = 0.95,
    num_resamples: int = 9_999,
    seed: int = 0,
) -> Interval:
    """Returns any figure of the examples with its percentile interval (Efron & Tibshirani 1993, §13.3).

    The examples are drawn with replacement, those of all arrays together. Of few examples the interval is too
    narrow. The same seed gives the same interval.

    Args:
      metric: called with arrays like `values`, in which the same examples were drawn from each.
      values: what the metric needs of each example, for example labels and predictions; equally long.
      confidence: of the interval.
      num_resamples: how often the metric is computed.
      seed: of the draws.

    Raises:
      UserError: the arrays differ in length, or have fewer than two examples.
    """
    from scipy import stats

    _check_confidence(confidence)
    arrays = [np.asarray(value) for value in values]
    lengths = sorted({len(array) for array in arrays})
    if len(lengths) != 1:
        raise UserError(f"values have the lengths {lengths}; give each one row for each example")
    if lengths[0] < 2:
        raise UserError(f"values have {lengths[0]} examples, and at least 2 can be resampled; give more")

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


class McNemar(NamedTuple):
    """Examples that only one of two classifiers has right, and the probability of so unequal a split."""

    only_a: int
    only_b: int
    p_value: float


def mcnemar(is_right_a: ArrayLike, is_right_b: ArrayLike) -> McNemar:
    """Returns the exact test of whether two classifiers err equally often on the same examples.

    The examples on which they differ fall to either side as a fair coin would (McNemar 1947, by the binomial
    distribution). Without a difference the p-value is 1.

    Raises:
      UserError: the arrays differ in shape.
    """
    from scipy import stats

    a, b = _pairs(np.asarray(is_right_a, bool), np.asarray(is_right_b, bool))
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    if only_a + only_b == 0:
        return McNemar(0, 0, 1.0)
    return McNemar(only_a, only_b, float(stats.binomtest(only_a, only_a + only_b).pvalue))


def paired_t(values_a: ArrayLike, values_b: ArrayLike) -> float:
    """Returns the p-value of Student's paired test: is the mean of a - b over the seeds 0?

    Differences that are all equal have p-value 1 if they are 0, else 0.

    Raises:
      UserError: the arrays differ in shape, or have fewer than two pairs.
    """
    from scipy import stats

    a, b = _seeds(values_a, values_b)
    if np.ptp(a - b) == 0:
        return 1.0 if a[0] == b[0] else 0.0
    return float(stats.ttest_rel(a, b).pvalue)


def paired_permutation(
    values_a: ArrayLike, values_b: ArrayLike, num_resamples: int = 9_999, seed: int = 0
) -> float:
    """Returns the p-value of the sign-flip test: is the mean of a - b over the seeds 0?

    Exact, over all 2^n ways to swap pairs, if these are no more than `num_resamples`, else over so many
    random ones (Fisher 1935, §21); no distribution is assumed. Of n pairs it cannot fall below 2 / 2^n: five
    seeds reach 0.0625.

    Raises:
      UserError: the arrays differ in shape, or have fewer than two pairs.
    """
    from scipy import stats

    a, b = _seeds(values_a, values_b)

    def mean(differences: np.ndarray, axis: int) -> np.ndarray:
        return differences.mean(axis)

    # Of one sample, "samples" flips signs.
    result = stats.permutation_test(
        (a - b,),
        mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=num_resamples,
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def _pairs(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if a.shape != b.shape:
        raise UserError(
            f"a pair needs two values, got the shapes {a.shape} and {b.shape}; give both the same"
        )
    return a.ravel(), b.ravel()


def _seeds(values_a: ArrayLike, values_b: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    a, b = _pairs(np.asarray(values_a, np.float64), np.asarray(values_b, np.float64))
    if a.size < 2:
        raise UserError(f"{a.size} pairs tell nothing of the spread over seeds; give two at least")
    return a, b


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise UserError(f"confidence={confidence} is not between 0 and 1; write 0.95 for 95 %")
