"""Metrics of a classifier from the outcomes of its examples, on the host, in memory for the outcomes alone.

Shapes: N examples, C classes, K bins of confidence, P pairs of classes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dl.evaluation import calibration, classification
from dl.evaluation.calibration import Calibration
from dl.evaluation.classification import Counts
from dl.evaluation.intervals import wilson
from dl.evaluation.outcomes import Outcomes
from dl.evaluation.sums import ExactMean

TOP_K = 5
_CHUNK = 2**16  # examples that are summed at once


def outcome_figures(outcomes: Outcomes, num_classes: int) -> dict[str, float | np.ndarray]:
    """Computes the metrics that `classification_figures` computes too, except for these.

    The confusion matrix, and ROC-AUC and average precision of each class against the others, are not
    computed. In place of the matrix there is `labelled` (C,): the number of examples of each class.
    """
    hits_N = np.asarray(outcomes.is_right)
    label_N, predicted_N = np.asarray(outcomes.label), np.asarray(outcomes.predicted)
    counts = Counts(
        *(
            jnp.asarray(np.bincount(classes, minlength=num_classes), jnp.int32)
            for classes in (label_N[hits_N], predicted_N, label_N)
        )
    )
    log_loss, brier, bins = _sums(outcomes)
    shown = calibration.reliability(bins)
    figures = {
        "num_examples": len(label_N),
        "accuracy": classification.accuracy(counts),
        "log_loss": log_loss.compute(),
        "perplexity": classification.perplexity(log_loss.compute()),
        "brier_score": brier.compute(),
        "labelled": counts.labelled,
        **classification.per_class(counts)._asdict(),
        "expected_calibration_error": calibration.expected_calibration_error(bins),
        "calibration_count": bins.counts,
        "calibration_accuracy": shown.accuracy,
        "calibration_confidence": shown.confidence,
    }
    if num_classes > TOP_K:
        rank_counts_C = np.bincount(np.asarray(outcomes.rank), minlength=num_classes)
        figures[f"top_{TOP_K}_accuracy"] = classification.top_k_accuracy(jnp.asarray(rank_counts_C), TOP_K)
    for mean in (classification.macro, classification.micro, classification.weighted):
        scores = mean(counts)._asdict()
        figures |= {f"{name}_{mean.__name__}": score for name, score in scores.items()}
    _, low, high = wilson(int(hits_N.sum()), len(label_N))
    found = {name: np.asarray(figure) for name, figure in figures.items()}
    found["accuracy_interval"] = np.array([low, high])
    return {name: figure if figure.ndim else float(figure) for name, figure in found.items()}


def top_k_curve(outcomes: Outcomes, num_classes: int, most: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Returns k = 1, …, at most `most`, and the fraction of examples whose label is among the k best."""
    rank_N = np.asarray(outcomes.rank)
    most = min(most, num_classes)
    counts = np.bincount(np.minimum(rank_N, most), minlength=most + 1)[:most]
    return np.arange(1, most + 1), np.cumsum(counts) / max(len(rank_N), 1)


def coverage_curve(outcomes: Outcomes, most: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Returns coverages and the accuracy on that fraction of the examples: those with the most confidence.

    It is the risk-coverage curve (El-Yaniv & Wiener 2010), with accuracy in place of risk, at `most` points
    at even distances. Among equal confidences the examples come in their order.
    """
    order = np.argsort(-np.asarray(outcomes.predicted_log_probability), kind="stable")
    hits_N = np.cumsum(np.asarray(outcomes.is_right)[order])
    ends = np.unique(np.linspace(1, len(order), min(most, len(order))).round().astype(np.int64))
    return ends / max(len(order), 1), hits_N[ends - 1] / ends


class Confusions(NamedTuple):
    """The pairs of classes that were confused, the most frequent first; each shape P.

    Attributes:
      label: the label.
      predicted: the prediction, another class.
      counts: the number of examples.
    """

    label: np.ndarray
    predicted: np.ndarray
    counts: np.ndarray


def confusions(outcomes: Outcomes, num_classes: int) -> Confusions:
    """Returns the cells of the confusion matrix that are off its diagonal and not 0.

    Equal counts come in the order of label, then prediction.
    """
    is_wrong_N = ~np.asarray(outcomes.is_right)
    label_N, predicted_N = (
        np.asarray(classes)[is_wrong_N] for classes in (outcomes.label, outcomes.predicted)
    )
    pair_P, count_P = np.unique(label_N.astype(np.int64) * num_classes + predicted_N, return_counts=True)
    order = np.argsort(-count_P, kind="stable")
    return Confusions(*np.divmod(pair_P[order], num_classes), count_P[order])


def _sums(outcomes: Outcomes) -> tuple[ExactMean, ExactMean, Calibration]:
    """Returns the log-loss, the Brier score and the calibration of all examples, chunk by chunk."""
    size = len(outcomes.label)
    chunk = min(max(size, 1), _CHUNK)  # each chunk has this shape, so that one program is compiled
    total = None
    for start in range(0, max(size, 1), chunk):
        num = min(chunk, size - start)
        part = jax.tree.map(lambda x: _padded(np.asarray(x)[start : start + num], chunk), outcomes)  # noqa: B023
        sums = _sums_of_chunk(part, np.arange(chunk) < num)
        total = sums if total is None else tuple(a.merge(b) for a, b in zip(total, sums, strict=True))
    assert total is not None
    return total


def _padded(values_B: np.ndarray, size: int) -> np.ndarray:
    return np.pad(values_B, (0, size - len(values_B)))


@jax.jit
def _sums_of_chunk(outcomes: Outcomes, mask_B: jax.Array) -> tuple[ExactMean, ExactMean, Calibration]:
    return (
        ExactMean.of(-outcomes.label_log_probability, mask_B),
        ExactMean.of(outcomes.brier, mask_B),
        Calibration.of_outcomes(outcomes, mask_B),
    )
