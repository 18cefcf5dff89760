"""Metrics of a multi-label classifier from its stored predictions.

Shapes: N examples, C labels.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dl.errors import UserError
from dl.evaluation.figure import Figure, half_width, no_interval, share_interval
from dl.evaluation.ranking import average_precision

NUM_GROUPS = 50  # groups of the jackknife
_DELTA = "delta method over the examples"
_JACKKNIFE = "jackknife over groups of examples"


@dataclasses.dataclass(frozen=True)
class MultiLabelFigures:
    """Metrics of each label, shape C, and over all labels.

    They equal those of scikit-learn with `zero_division=0`.

    Attributes:
      count: the number of examples that have the label.
      precision: tp / (tp + fp); 0 if the divisor is 0.
      recall: tp / (tp + fn); 0 if the divisor is 0.
      f1: 2 tp / (2 tp + fp + fn); 0 if the divisor is 0.
      average_precision: area under the precision-recall curve; 0 if no example has the label.
      overall: `f1_micro` of the summed counts; `f1_macro` and `average_precision_macro`, means over labels.
    """

    count: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    average_precision: np.ndarray
    overall: dict[str, Figure]


def multi_label_figures(log_odds: Any, labels: Any) -> MultiLabelFigures:
    """Computes the metrics of logits. A label is predicted if its logit is > 0.

    Args:
      log_odds: the logits, shape (N, C). A NaN is not a prediction, and makes the average precision of its
        label NaN.
      labels: 0 or 1, shape (N, C).

    Raises:
      UserError: the shapes differ, or a label is not 0 or 1.
    """
    log_odds_NC, label_NC = np.asarray(log_odds), np.asarray(labels)
    if log_odds_NC.ndim != 2 or log_odds_NC.shape != label_NC.shape or not log_odds_NC.size:
        raise UserError(
            f"log_odds have the shape {log_odds_NC.shape} and labels {label_NC.shape}; expected equal "
            "shapes, "
            "(examples, labels)"
        )
    if not np.isin(label_NC, (0, 1)).all():
        raise UserError("labels are not all 0 or 1; give 1 for each label that an example has, else 0")
    is_label_NC, is_predicted_NC = label_NC > 0, log_odds_NC > 0
    hit_NC = (is_label_NC & is_predicted_NC).astype(np.float64)
    twice_NC = is_label_NC.astype(np.float64) + is_predicted_NC  # 2 tp + fp + fn
    hits_C = hit_NC.sum(0)
    precision_C, recall_C = (hits_C / np.maximum(x.sum(0), 1) for x in (is_predicted_NC, is_label_NC))
    f1_C, micro = (
        2 * hit.sum(0) / np.maximum(twice.sum(0), 1)
        for hit, twice in ((hit_NC, twice_NC), (hit_NC.sum(1), twice_NC.sum(1)))
    )
    influence_NC = (2 * hit_NC - f1_C * twice_NC) / np.maximum(twice_NC.mean(0), 1 / len(hit_NC))
    of_micro_N = (2 * hit_NC - micro * twice_NC).sum(1) / max(twice_NC.sum(1).mean(), 1 / len(hit_NC))
    area_C, area_spread = _average_precisions(log_odds_NC, is_label_NC)
    overall = {
        "f1_micro": _share(float(micro), half_width(of_micro_N), _DELTA),
        "f1_macro": _share(float(f1_C.mean()), half_width(influence_NC.mean(1)), _DELTA),
        "average_precision_macro": _share(float(area_C.mean()), area_spread, _JACKKNIFE),
    }
    return MultiLabelFigures(is_label_NC.sum(0), precision_C, recall_C, f1_C, area_C, overall)


def _share(value: float, half: float, method: str) -> Figure:
    low, high = share_interval(value, half)
    return Figure(value, low, high, "max", method) if low <= high else no_interval(value, "max")


def _average_precisions(log_odds_NC: np.ndarray, is_label_NC: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns the average precision of each label, and the half width of the interval of their mean.

    The method is the jackknife that leaves out one of `NUM_GROUPS` random groups of examples at a time (Kott
    2001).
    """
    from scipy import stats

    size = len(log_odds_NC)
    num_groups = min(NUM_GROUPS, size)
    group_N = np.random.default_rng(0).permutation(size) % num_groups
    mask_GN = np.concatenate([np.ones((1, size), bool), group_N != np.arange(num_groups)[:, None]])
    areas_GC = np.asarray(_areas(jnp.asarray(log_odds_NC), jnp.asarray(is_label_NC), jnp.asarray(mask_GN)))
    mean_G = areas_GC[1:].mean(1)
    if num_groups < 2:
        return areas_GC[0], float("nan")
    spread = np.sqrt((num_groups - 1) / num_groups * np.square(mean_G - mean_G.mean()).sum())
    return areas_GC[0], float(stats.t.ppf(0.975, num_groups - 1) * spread)


@jax.jit
def _areas(log_odds_NC: jax.Array, is_label_NC: jax.Array, mask_GN: jax.Array) -> jax.Array:
    def of_label(scores_and_labels: tuple[jax.Array, jax.Array]) -> jax.Array:
        return jax.lax.map(lambda mask_N: average_precision(*scores_and_labels, mask_N), mask_GN)

    # The columns are sorted one by one, so that memory is needed for one column only.
    return jax.lax.map(of_label, (log_odds_NC.T, is_label_NC.T)).T
