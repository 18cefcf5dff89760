"""Paired tests of two metrics and intervals of their difference, on the host, by SciPy.

They treat the examples (`mcnemar`, `newcombe_paired`, `paired_ratio`) or the seeds (`paired_t`,
`paired_permutation`) as a random sample. All tests are two-sided.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from dl.errors import UserError
from dl.evaluation.intervals import Interval, check_confidence, ratio_interval, wilson

NOT_TESTED = "not tested"
NO_DIFFERENCE = "no difference shown"
NO_DIRECTION = "a difference, but nothing states which is better,"


def verdict(
    interval: Interval | None, p_value: float | None, better: str | None, confidence: float = 0.95
) -> str:
    """Returns the verdict on a from the difference a - b of a metric, as text.

    It is `better` or `worse` only if the interval excludes zero and the test rejects.

    Args:
      interval: the difference with its interval. `None` means that there is no test.
      p_value: the p-value of the test. `None` means that only the interval decides.
      better: whether small ("min") or large ("max") values are good. `None` means that it is not known.
      confidence: the confidence level of the interval, such as 0.95.
    """
    if interval is None:
        return NOT_TESTED
    rejects = p_value is None or p_value <= 1 - confidence
    if not ((interval.low > 0 or interval.high < 0) and rejects):
        return NO_DIFFERENCE
    if better is None:
        return NO_DIRECTION
    return "better" if (interval.estimate > 0) == (better == "max") else "worse"


class McNemar(NamedTuple):
    """Examples that only one of two classifiers predicts correctly, and the p-value of McNemar's test."""

    only_a: int
    only_b: int
    p_value: float


def mcnemar(is_right_a: ArrayLike, is_right_b: ArrayLike) -> McNemar:
    """Returns the exact test of whether two classifiers have equal error rates on the same examples.

    Under the hypothesis, each example on which they differ favours either one with probability 1/2 (McNemar
    1947, with the binomial distribution). Without such examples the p-value is 1.

    Raises:
      UserError: the arrays differ in shape.
    """
    from scipy import stats

    a, b = _pairs(np.asarray(is_right_a, bool), np.asarray(is_right_b, bool))
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    if only_a + only_b == 0:
        return McNemar(0, 0, 1.0)
    return McNemar(only_a, only_b, float(stats.binomtest(only_a, only_a + only_b).pvalue))


def newcombe_paired(only_a: int, only_b: int, both: int, neither: int, confidence: float = 0.95) -> Interval:
    """Returns the accuracy of a minus that of b on the same examples, with its interval.

    The interval combines the squared distances to the bounds of both Wilson intervals with their
    continuity-corrected correlation φ (Newcombe 1998, Statistics in Medicine 17, 2635-2650, method 10).

    Args:
      only_a: number of examples that only a predicts correctly.
      only_b: number of examples that only b predicts correctly.
      both: number of examples that both predict correctly.
      neither: number of examples that neither predicts correctly.
      confidence: the confidence level of the interval, such as 0.95.

    Raises:
      UserError: a count is negative, or there are no examples.
    """
    num = only_a + only_b + both + neither
    if min(only_a, only_b, both, neither) < 0 or not num:
        raise UserError(
            f"only_a={only_a}, only_b={only_b}, both={both}, neither={neither} are not valid; give counts "
            "of at "
            "least 0 whose sum is at least 1"
        )
    p_a, low_a, high_a = wilson(both + only_a, num, confidence)
    p_b, low_b, high_b = wilson(both + only_b, num, confidence)
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    phi = 0.0
    if margins:
        product = both * neither - only_a * only_b
        phi = (max(product - num / 2, 0.0) if product > 0 else product) / margins**0.5
    difference = (only_a - only_b) / num

    def distance(one: float, other: float) -> float:
        return float(np.sqrt(max(one**2 - 2 * phi * one * other + other**2, 0.0)))

    return Interval(
        difference,
        max(difference - distance(p_a - low_a, high_b - p_b), -1.0),
        min(difference + distance(high_a - p_a, p_b - low_b), 1.0),
    )


class Paired(NamedTuple):
    """A mean difference over pairs, with its interval and the p-value of the hypothesis that it is 0."""

    interval: Interval
    p_value: float


def paired_ratio(examples_a: np.ndarray, examples_b: np.ndarray, confidence: float = 0.95) -> Paired:
    """Returns the difference of a metric, a minus b, over the same N examples, with Student's paired test.

    A metric is Σ total / Σ weight. The difference of two ratios is linearised: each example adds
    (total_a - ratio_a weight_a) / Σ weight_a minus the same term for b (Cochran 1977, 6.17). With weights of
    1 this is Student's paired test of the means. A sequence of tokens is one example.

    Args:
      examples_a: total and weight of each example for a, shape N × 2.
      examples_b: total and weight of the same examples for b, shape N × 2.
      confidence: the confidence level of the interval, such as 0.95.

    Raises:
      UserError: the arrays differ in shape, or have fewer than two rows.
    """
    from scipy import stats

    check_confidence(confidence)
    a, b = np.asarray(examples_a, np.float64), np.asarray(examples_b, np.float64)
    if a.shape != b.shape or len(a) < 2:
        raise UserError(
            f"a paired test needs at least two examples, the same on both sides; there are {len(a)} and "
            f"{len(b)}"
        )
    (ratio_a, each_a_N), (ratio_b, each_b_N) = _linearised(a), _linearised(b)
    difference, each_N = ratio_a - ratio_b, each_a_N - each_b_N
    variance = len(each_N) / (len(each_N) - 1) * float((each_N**2).sum())
    interval = ratio_interval(difference, variance, len(each_N), len(each_N) - 1, False, confidence)
    if variance == 0:
        return Paired(interval, 1.0 if difference == 0 else 0.0)
    return Paired(interval, float(2 * stats.t.sf(abs(difference) / variance**0.5, len(each_N) - 1)))


def _linearised(examples: np.ndarray) -> tuple[float, np.ndarray]:
    """Returns Σ total / Σ weight, and the contribution of each example to its deviation."""
    totals_N, weights_N = examples.T
    ratio = totals_N.sum() / weights_N.sum()
    return float(ratio), (totals_N - ratio * weights_N) / weights_N.sum()


class PairedTest(NamedTuple):
    """The difference of a metric, a minus b, on the same examples: the test, its interval and its p-value."""

    test: str
    interval: Interval
    p_value: float


def paired_examples(examples_a: np.ndarray, examples_b: np.ndarray, confidence: float = 0.95) -> PairedTest:
    """Returns the difference of a metric, a minus b, over the same N examples, with the test that fits it.

    Zeros and ones, one for each example, have McNemar's exact test and Newcombe's interval. Other means have
    Student's paired test over the examples; see `paired_ratio`.

    Args:
      examples_a: total and weight of each example for a, shape N × 2.
      examples_b: total and weight of the same examples for b, shape N × 2.
      confidence: the confidence level of the interval, such as 0.95.

    Raises:
      UserError: the arrays differ in shape, or have fewer than two rows.
    """
    num = len(examples_a)
    both_sides = (examples_a, examples_b)
    if not all(np.isin(rows[:, 0], (0, 1)).all() and (rows[:, 1] == 1).all() for rows in both_sides):
        return PairedTest(f"paired t over {num:,} examples", *paired_ratio(*both_sides, confidence))
    a, b = (rows[:, 0] > 0 for rows in both_sides)
    test = mcnemar(a, b)
    both = int((a & b).sum())
    neither = num - both - test.only_a - test.only_b
    words = f"McNemar, exact, {num:,} examples, {test.only_b:,} and {test.only_a:,} right in one only"
    interval = newcombe_paired(test.only_a, test.only_b, both, neither, confidence)
    return PairedTest(words, interval, test.p_value)


def paired_t(values_a: ArrayLike, values_b: ArrayLike) -> float:
    """Returns the p-value of Student's paired test that the mean of a - b over the seeds is 0.

    If all differences are equal, the p-value is 1 if they are 0, else 0.

    Raises:
      UserError: the arrays differ in shape, or have fewer than two pairs.
    """
    from scipy import stats

    a, b = _seeds(values_a, values_b)
    if np.ptp(a - b) == 0:
        return 1.0 if a[0] == b[0] else 0.0
    return float(stats.ttest_rel(a, b).pvalue)


class FoldsTest(NamedTuple):
    """A difference between two models over the folds of a cross-validation.

    Attributes:
      interval: the mean difference with its interval.
      p_value: the p-value of the two-sided test that the difference is zero.
    """

    interval: Interval
    p_value: float


def overlapping_folds(differences: ArrayLike, held_out_ratio: float, confidence: float = 0.95) -> FoldsTest:
    """Returns the corrected resampled t-test of differences over folds (Nadeau & Bengio 2003, section 3).

    The training sets of folds overlap, so that the folds vary less than independent runs do. The variance of
    the mean is therefore taken as (1 / K + held_out_ratio) s², with the variance s² over the K folds.

    Args:
      differences: metric of the first model minus that of the second on each fold, shape K.
      held_out_ratio: number of held-out examples over that of training examples of a fold, such as 1 / 9.
      confidence: the confidence level of the interval, such as 0.95.

    Raises:
      UserError: there are fewer than two folds.
    """
    from scipy import stats

    check_confidence(confidence)
    values = np.asarray(differences, np.float64).ravel()
    if values.size < 2:
        raise UserError(f"differences has {values.size} folds; give the differences of at least two")
    mean, error = (
        float(values.mean()),
        float(np.sqrt((1 / values.size + held_out_ratio) * values.var(ddof=1))),
    )
    half = float(stats.t.ppf((1 + confidence) / 2, values.size - 1)) * error
    p_value = float(2 * stats.t.sf(abs(mean) / error, values.size - 1)) if error else float(mean == 0)
    return FoldsTest(Interval(mean, mean - half, mean + half), p_value)


def paired_permutation(
    values_a: ArrayLike, values_b: ArrayLike, num_resamples: int = 9_999, seed: int = 0
) -> float:
    """Returns the p-value of the sign-flip test that the mean of a - b over the seeds is 0.

    The test does not assume a distribution (Fisher 1935, 21). It is exact, over all 2^n ways to swap pairs,
    if these are at most `num_resamples`; otherwise it uses that many random ways. With n pairs the p-value is
    at least 2 / 2^n: five seeds reach 0.0625.

    Raises:
      UserError: the arrays differ in shape, or have fewer than two pairs.
    """
    from scipy import stats

    a, b = _seeds(values_a, values_b)

    def mean(differences: np.ndarray, axis: int) -> np.ndarray:
        return differences.mean(axis)

    # For one sample, permutation_type="samples" flips signs.
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
            f"a and b have the shapes {a.shape} and {b.shape}; expected equal shapes, one value for each pair"
        )
    return a.ravel(), b.ravel()


def _seeds(values_a: ArrayLike, values_b: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    a, b = _pairs(np.asarray(values_a, np.float64), np.asarray(values_b, np.float64))
    if a.size < 2:
        raise UserError(f"{a.size} pairs do not show the spread over seeds; give at least two")
    return a, b
