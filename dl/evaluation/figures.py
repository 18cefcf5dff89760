"""All metrics of a classifier from its stored predictions, in one call.

Shapes: N examples, C classes.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dl.errors import UserError
from dl.evaluation import ranking
from dl.evaluation.outcome_figures import outcome_figures
from dl.evaluation.outcomes import Outcomes

# Tolerance for the sum of the probabilities, which is 1. Those of bfloat16 are within it.
SUM_TOLERANCE = 0.05


def classification_figures(
    log_probabilities: Any, labels: Any, mask: Any = None
) -> dict[str, float | np.ndarray]:
    """Computes the metrics of the valid examples; scalars as float, the others as arrays.

    - `num_examples`, `accuracy` and its 95 % Wilson interval `accuracy_interval`; with more than five classes
      `top_5_accuracy`;
    - `log_loss` in nats, `perplexity`, `brier_score` in [0, 2] (summed over classes);
    - `confusion` (C, C), rows are labels;
    - `precision`, `recall`, `f1` (C,), and each as `…_macro`, `…_micro`, `…_weighted`;
    - `roc_auc`, `average_precision` (C,) of each class against the others, and each as `…_macro`; with two
      classes the value of class 1 is the binary metric;
    - `expected_calibration_error` with 15 bins, and for each bin `calibration_count`, `calibration_accuracy`,
      `calibration_confidence` (K,), NaN if it is empty.

    A class has ROC-AUC NaN if no example or every example has it as label, and so has the macro mean. Without
    a valid example, ROC-AUCs are NaN, `accuracy_interval` is [0, 1], `perplexity` is 1, and other metrics are
    0.

    Args:
      log_probabilities: natural logarithms, shape (N, C), on the host or on devices with any sharding.
      labels: integers in [0, C) where the mask is True, shape (N,).
      mask: whether each example counts, shape (N,). `None` means that all examples count.

    Raises:
      UserError: shapes do not fit, a label is not a class, or a row does not hold log-probabilities.
    """
    log_probabilities, mask_N = jnp.asarray(log_probabilities), _checked_mask(log_probabilities, labels, mask)
    outcomes = outcomes_of(log_probabilities, labels, mask_N)
    num_classes = log_probabilities.shape[1]
    confusion_CC = np.zeros((num_classes, num_classes), np.int32)
    np.add.at(confusion_CC, (outcomes.label, outcomes.predicted), 1)
    figures = outcome_figures(outcomes, num_classes)
    del figures["labelled"]
    return {**figures, "confusion": confusion_CC, **class_areas(log_probabilities, labels, mask_N)}


def outcomes_of(log_probabilities: Any, labels: Any, mask: Any = None) -> Outcomes:
    """Returns the outcomes of the valid examples on the host; see `classification_figures`."""
    mask_N = _checked_mask(log_probabilities, labels, mask)
    outcomes, sums_to_one_N = jax.device_get(_outcomes(log_probabilities, jnp.asarray(labels)))
    is_off_N = mask_N & ~sums_to_one_N
    if is_off_N.any():
        raise UserError(
            f"log_probabilities of example {int(np.argmax(is_off_N))} do not sum to 1 as probabilities; "
            "pass jax.nn.log_softmax(logits)"
        )
    return jax.tree.map(lambda values_N: values_N[mask_N], outcomes)


def class_areas(log_probabilities: Any, labels: Any, mask: Any = None) -> dict[str, float | np.ndarray]:
    """Returns ROC-AUC and average precision of each class, and their macro means, by name."""
    mask_N = _checked_mask(log_probabilities, labels, mask)
    areas = jax.device_get(_areas(log_probabilities, jnp.asarray(labels), jnp.asarray(mask_N)))
    return {name: area if np.ndim(area) else float(area) for name, area in areas.items()}


@jax.jit
def _outcomes(log_probabilities_NC: jax.Array, labels_N: jax.Array) -> tuple[Outcomes, jax.Array]:
    """Returns the outcomes, and whether the probabilities of each example sum to 1 (a NaN passes)."""
    log_p_NC = jnp.asarray(log_probabilities_NC, jnp.float32)
    is_off_N = jnp.abs(jax.nn.logsumexp(log_p_NC, axis=-1)) > SUM_TOLERANCE
    return Outcomes.of(log_p_NC, labels_N), ~is_off_N


@jax.jit
def _areas(log_probabilities_NC: jax.Array, labels_N: jax.Array, mask_N: jax.Array) -> dict[str, jax.Array]:
    def areas(*arrays: jax.Array) -> dict[str, jax.Array]:
        return {
            "roc_auc": ranking.roc_auc(*arrays),
            "average_precision": ranking.average_precision(*arrays),
        }

    log_p_NC = jnp.asarray(log_probabilities_NC, jnp.float32)
    found = ranking.one_vs_rest(areas, log_p_NC, labels_N, mask_N)
    return found | {f"{name}_macro": areas_C.mean() for name, areas_C in found.items()}


def _checked_mask(log_probabilities: Any, labels: Any, mask: Any) -> np.ndarray:
    """Returns the mask on the host; raises UserError for arguments that do not fit."""
    shape = np.shape(log_probabilities)
    if len(shape) != 2 or np.shape(labels) != shape[:1]:
        raise UserError(
            f"log_probabilities have the shape {shape} and labels {np.shape(labels)}; "
            "expected (examples, classes) and (examples,)"
        )
    if mask is None:
        mask = np.ones(shape[0], bool)
    if np.shape(mask) != shape[:1]:
        raise UserError(
            f"the mask has the shape {np.shape(mask)}; expected one value for each example, {shape[:1]}"
        )
    mask_N = np.asarray(mask, bool)
    _check_labels(np.asarray(labels), mask_N, shape[1])
    return mask_N


def _check_labels(labels_N: np.ndarray, mask_N: np.ndarray, num_classes: int) -> None:
    if not np.issubdtype(labels_N.dtype, np.integer):
        raise UserError(
            f"labels have the dtype {labels_N.dtype}; expected integers, the numbers of the classes"
        )
    is_wrong_N = mask_N & ((labels_N < 0) | (labels_N >= num_classes))
    if is_wrong_N.any():
        row = int(np.argmax(is_wrong_N))
        raise UserError(
            f"the label of example {row} is {labels_N[row]}, but log_probabilities have {num_classes} "
            f"classes; expected 0 to {num_classes - 1}, or a mask that is False there"
        )
