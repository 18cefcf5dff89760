"""Ranking metrics of a score: ROC and precision-recall, their curves and areas.

The areas are exact, also with ties: all scores are sorted on the device. They do not add up over batches, so
all scores are needed. The curves, for plots, are computed by scikit-learn on the host.

Any increasing function of a score gives the same areas. Pass the logarithms of probabilities, because
different probabilities near 1 may round to the same number.

Shapes: N examples, C classes.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dl.evaluation.sums import Double


def roc_auc(scores_N: jax.Array, is_positive_N: jax.Array, mask_N: jax.Array | None = None) -> jax.Array:
    """Returns the area under the ROC curve: P(score of a positive > of a negative) + P(equal) / 2.

    Source: Hanley & McNeil 1982. It is NaN if there are no positives or no negatives, as in scikit-learn, or
    if a valid score is NaN.
    """
    ranked = _rank(scores_N, is_positive_N, mask_N)
    num_positive, num_negative = ranked.num_positive[-1], ranked.num_negative[-1]
    # The sum of the negatives below, and at or below: twice the number of negatives below, ties counted half.
    beaten_N = ranked.num_negative[ranked.start] + ranked.num_negative[ranked.end]
    wins = Double.sum(jnp.where(ranked.is_positive, beaten_N, 0)).high
    is_defined = (num_positive > 0) & (num_negative > 0) & ~ranked.has_nan
    pairs = jnp.maximum(num_positive, 1).astype(jnp.float32) * jnp.maximum(num_negative, 1)
    return jnp.where(is_defined, wins / 2 / pairs, jnp.nan)


def average_precision(
    scores_N: jax.Array, is_positive_N: jax.Array, mask_N: jax.Array | None = None
) -> jax.Array:
    """Returns the area under the precision-recall curve as Σ (R_n - R_{n-1}) P_n over the thresholds n.

    It equals `sklearn.metrics.average_precision_score`, without interpolation: the mean over the positives of
    the precision at the score of the positive. It is 0 without positives, 1 without negatives, and NaN if a
    valid score is NaN.
    """
    ranked = _rank(scores_N, is_positive_N, mask_N)
    num_positive, num_negative = ranked.num_positive[-1], ranked.num_negative[-1]
    true_N = num_positive - ranked.num_positive[ranked.start]
    false_N = num_negative - ranked.num_negative[ranked.start]
    precision_N = true_N / jnp.maximum(true_N + false_N, 1)
    total = Double.sum(jnp.where(ranked.is_positive, precision_N, 0.0)).high
    return jnp.where(ranked.has_nan, jnp.nan, total / jnp.maximum(num_positive, 1))


def one_vs_rest(
    metric: Callable[..., Any], scores_NC: jax.Array, labels_N: jax.Array, mask_N: jax.Array | None = None
) -> Any:
    """Returns `metric` of each class against all others, with a leading axis C.

    `.mean()` is the macro average. As in scikit-learn it is NaN if `metric` is undefined for a class;
    `jnp.nanmean` leaves out such classes.

    Args:
      metric: a metric such as `roc_auc`, which is called as metric(scores_N, is_positive_N, mask_N).
      scores_NC: the scores, such as log-probabilities.
      labels_N: the classes of the examples.
      mask_N: whether each example counts. `None` means that all examples count.
    """

    def of_class(scores_and_class: tuple[jax.Array, jax.Array]) -> Any:
        scores_N, c = scores_and_class
        return metric(scores_N, labels_N == c, mask_N)

    # The classes are sorted one by one, so that memory is needed for one column only.
    return jax.lax.map(of_class, (scores_NC.T, jnp.arange(scores_NC.shape[-1])))


class Curve(NamedTuple):
    """Points of a curve, each with its threshold: the smallest score that counts as positive."""

    x: np.ndarray
    y: np.ndarray
    thresholds: np.ndarray


def roc_curve(scores_N: Any, is_positive_N: Any, mask_N: Any = None) -> Curve:
    """Returns false positive rates (x) and true positive rates (y), on the host, from (0, 0) to (1, 1).

    As in `sklearn.metrics.roc_curve`, points on a straight line are left out, and a rate is NaN if its
    divisor is 0. Without a valid example there are no points.
    """
    from sklearn import metrics

    return _curve(lambda *arrays: Curve(*metrics.roc_curve(*arrays)), scores_N, is_positive_N, mask_N)


def precision_recall_curve(scores_N: Any, is_positive_N: Any, mask_N: Any = None) -> Curve:
    """Returns recalls (x) and precisions (y), on the host, in increasing order of the threshold.

    As in `sklearn.metrics.precision_recall_curve`, the last point (recall 0, precision 1) has no threshold,
    and without positives every other recall is 1. Without a valid example there are no points.
    """
    from sklearn import metrics

    def curve(is_positive_N: np.ndarray, scores_N: np.ndarray) -> Curve:
        precision, recall, thresholds = metrics.precision_recall_curve(
            is_positive_N, scores_N, drop_intermediate=True
        )
        return Curve(recall, precision, thresholds)

    return _curve(curve, scores_N, is_positive_N, mask_N)


def _curve(curve: Callable[..., Curve], scores_N: Any, is_positive_N: Any, mask_N: Any) -> Curve:
    scores_N, is_positive_N = np.asarray(scores_N), np.asarray(is_positive_N, bool)
    if mask_N is not None:
        valid_N = np.asarray(mask_N, bool)
        scores_N, is_positive_N = scores_N[valid_N], is_positive_N[valid_N]
    if not scores_N.size:
        return Curve(np.empty(0), np.empty(0), np.empty(0))
    with warnings.catch_warnings():
        # scikit-learn warns about a missing class; the docstrings state it instead.
        warnings.simplefilter("ignore", UserWarning)
        return curve(is_positive_N, scores_N)


class _Ranked(NamedTuple):
    """Examples sorted by increasing score, masked ones last.

    Attributes:
      is_positive: whether each example is valid and positive, in this order, shape N.
      num_positive, num_negative: number of positives and negatives before each position, shape N + 1.
      start, end: the positions where the equal scores that contain an example begin and end,
        shape N.
      has_nan: whether a valid score is NaN.
    """

    is_positive: jax.Array
    num_positive: jax.Array
    num_negative: jax.Array
    start: jax.Array
    end: jax.Array
    has_nan: jax.Array


def _rank(scores_N: jax.Array, is_positive_N: jax.Array, mask_N: jax.Array | None) -> _Ranked:
    scores_N = jnp.asarray(scores_N, jnp.float32)
    is_positive_N = jnp.asarray(is_positive_N, bool)
    is_masked_N = jnp.zeros(scores_N.shape, bool) if mask_N is None else ~jnp.asarray(mask_N, bool)
    has_nan = (jnp.isnan(scores_N) & ~is_masked_N).any()
    # The mask is a separate sort key, because an infinite score may be valid.
    is_masked_N, scores_N, is_positive_N = jax.lax.sort((is_masked_N, scores_N, is_positive_N), num_keys=2)

    def before(counted_N: jax.Array) -> jax.Array:
        return jnp.pad(jnp.cumsum(counted_N, dtype=jnp.int32), (1, 0))

    num = scores_N.shape[0]
    place_N = jnp.arange(num)
    # Masked examples may extend the last run of equal scores. They do not change any count.
    is_new_N = jnp.ones(num, bool).at[1:].set(scores_N[1:] != scores_N[:-1])
    start_N = jax.lax.cummax(jnp.where(is_new_N, place_N, 0))
    is_last_N = jnp.ones(num, bool).at[:-1].set(is_new_N[1:])
    end_N = jax.lax.cummin(jnp.where(is_last_N, place_N + 1, num), reverse=True)
    return _Ranked(
        is_positive_N & ~is_masked_N,
        before(is_positive_N & ~is_masked_N),
        before(~is_positive_N & ~is_masked_N),
        start_N,
        end_N,
        has_nan,
    )
