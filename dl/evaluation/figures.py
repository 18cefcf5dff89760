"""All metrics of a classifier from its stored predictions, in one call.

Shapes: N examples, C classes, K bins of confidence.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dl.errors import UserError
from dl.evaluation import calibration, classification, ranking
from dl.evaluation.intervals import wilson

# Tolerance for the sum of the probabilities, which is 1. Those of bfloat16 are within it.
SUM_TOLERANCE = 0.05
TOP_K = 5


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
    _check_labels(np.asarray(labels), np.asarray(mask, bool), shape[1])
    counted = jax.device_get(_count(log_probabilities, jnp.asarray(labels), jnp.asarray(mask, bool)))
    figures, sums_to_one = counted
    if not sums_to_one.all():
        row = int(np.argmin(sums_to_one))
        raise UserError(
            f"log_probabilities of example {row} do not sum to 1 as probabilities; "
            "pass jax.nn.log_softmax(logits)"
        )
    hits = int(np.trace(figures["confusion"]))
    _, low, high = wilson(hits, int(figures["num_examples"]))
    figures["accuracy_interval"] = np.array([low, high])
    return {name: figure if np.ndim(figure) else float(figure) for name, figure in figures.items()}


@jax.jit
def _count(
    log_probabilities_NC: jax.Array, labels_N: jax.Array, mask_N: jax.Array
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Returns the metrics, and whether the probabilities of each valid example sum to 1 (a NaN passes)."""
    log_p_NC = jnp.asarray(log_probabilities_NC, jnp.float32)
    sums = classification.Classification.of(log_p_NC, labels_N, mask_N)
    confusion_CC = sums.confusion
    log_loss = sums.log_loss.compute()
    figures = {
        "num_examples": confusion_CC.sum(),
        "accuracy": classification.accuracy(confusion_CC),
        "log_loss": log_loss,
        "perplexity": classification.perplexity(log_loss),
        "brier_score": sums.brier.compute(),
        "confusion": confusion_CC,
        **classification.per_class(confusion_CC)._asdict(),
    }
    if log_p_NC.shape[-1] > TOP_K:
        figures[f"top_{TOP_K}_accuracy"] = classification.top_k_accuracy(sums.rank_counts, TOP_K)
    for mean in (classification.macro, classification.micro, classification.weighted):
        scores = mean(confusion_CC)._asdict()
        figures |= {f"{name}_{mean.__name__}": score for name, score in scores.items()}

    def areas(*arrays: jax.Array) -> dict[str, jax.Array]:
        return {
            "roc_auc": ranking.roc_auc(*arrays),
            "average_precision": ranking.average_precision(*arrays),
        }

    for name, areas_C in ranking.one_vs_rest(areas, log_p_NC, labels_N, mask_N).items():
        figures |= {name: areas_C, f"{name}_macro": areas_C.mean()}
    bins = calibration.Calibration.of(log_p_NC, labels_N, mask_N)
    shown = calibration.reliability(bins)
    figures |= {
        "expected_calibration_error": calibration.expected_calibration_error(bins),
        "calibration_count": bins.counts,
        "calibration_accuracy": shown.accuracy,
        "calibration_confidence": shown.confidence,
    }
    is_off_N = jnp.abs(jax.nn.logsumexp(log_p_NC, axis=-1)) > SUM_TOLERANCE
    return figures, ~(mask_N & is_off_N)


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
