"""The sections of a classifier: confusion matrix, curves of each class, calibration, mistakes."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dl.errors import UserError
from dl.evaluation import classification_figures
from dl.evaluation.ranking import precision_recall_curve, roc_curve
from dl.report.mistakes import Mistake, most_confident_mistakes
from dl.report.plots import MAX_POINTS, NUM_STYLES, Plot, Series, Table, plot
from dl.runs.predictions import Predictions
from dl.types import Source

MAX_MATRIX = 20  # largest number of classes of a complete confusion matrix
MAX_ROWS = 50  # classes in a table
NUM_CONFUSIONS = 15
NUM_SHADES = 10


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A confusion matrix: rows are labels, columns are predictions. Each cell is a count and a shade."""

    class_names: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[int, int]]]]


@dataclasses.dataclass(frozen=True)
class Classifier:
    """The sections of a classifier.

    Attributes:
      sample: on how many examples the section is based, as text.
      figures: the name and the value of each metric.
      accuracy: the accuracy on these examples.
      error: the expected calibration error.
      classes: a table of precision, recall and other metrics of each class.
      worst: name and recall of the classes with the lowest recall.
      matrix: the confusion matrix. `None` if there are too many classes.
      confusions: a table of the most frequent confusions.
      curves: plots of ROC, precision and recall, and reliability.
      mistakes: the most confident mistakes first.
      num_mistakes: the number of all mistakes.
    """

    sample: str
    figures: Sequence[tuple[str, str]]
    accuracy: float
    error: float
    classes: Table
    worst: Sequence[str]
    matrix: Matrix | None
    confusions: Table
    curves: Sequence[Plot]
    mistakes: Sequence[Mistake]
    num_mistakes: int


def classifier_sections(
    predictions: Predictions,
    pictures: Source | None,
    texts: Callable[[np.ndarray], Sequence[str]] | None = None,
) -> Classifier:
    """Returns the sections of a classifier. Examples with a NaN are left out and counted.

    Args:
      predictions: the predictions for one split.
      pictures: the split, whose feature `image` is shown. `None` means no pictures.
      texts: function from rows of the split to their texts. `None` means no texts.

    Raises:
      UserError: the predictions are not log-probabilities.
    """
    sampled = predictions
    is_number_N = ~np.isnan(predictions.log_probabilities).any(1)
    left_out = int((~is_number_N).sum())
    if left_out == len(is_number_N):
        raise UserError(f"all {left_out:,} predictions are NaN; train the run again")
    if left_out:
        predictions = dataclasses.replace(
            predictions,
            index=predictions.index[is_number_N],
            label=predictions.label[is_number_N],
            log_probabilities=predictions.log_probabilities[is_number_N],
        )
    names, label_N = predictions.class_names, predictions.label
    log_p_NC = predictions.log_probabilities
    figures = classification_figures(log_p_NC, label_N)
    sample = sampled.sample
    if left_out:
        sample += f", without {left_out:,} whose predictions are no numbers (NaN)"
    wrong_N = np.flatnonzero(log_p_NC.argmax(-1) != label_N)
    confusion_CC = np.asarray(figures["confusion"])
    recall_C, labelled_C = np.asarray(figures["recall"]), confusion_CC.sum(1)
    by_recall = [c for c in np.argsort(recall_C, kind="stable") if labelled_C[c]][:3]
    return Classifier(
        sample,
        _figures(figures),
        float(figures["accuracy"]),
        float(figures["expected_calibration_error"]),
        _classes(figures, names),
        [f"{names[c]} (recall {recall_C[c]:.1%})".replace("%", " %") for c in by_recall],
        _matrix(confusion_CC, names) if len(names) <= MAX_MATRIX else None,
        _confusions(confusion_CC, names),
        [*_curves_by_class(predictions, figures), _reliability(figures)],
        most_confident_mistakes(predictions, wrong_N, pictures, texts),
        len(wrong_N),
    )


def _figures(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    low, high = figures["accuracy_interval"]
    shown = [("accuracy", f"{figures['accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f})")]
    for name in (
        *("top_5_accuracy", "precision_macro", "recall_macro", "f1_macro", "roc_auc_macro"),
        *("average_precision_macro", "log_loss", "brier_score", "expected_calibration_error"),
    ):
        if name in figures:
            shown.append((name.replace("_", " "), f"{figures[name]:.4f}"))
    return shown


def _classes(figures: Mapping[str, Any], names: Sequence[str]) -> Table:
    count_C = np.asarray(figures["confusion"]).sum(1)
    columns = ("precision", "recall", "f1", "roc_auc", "average_precision")
    shown = np.arange(len(names))
    title = "Figures of each class"
    if len(names) > MAX_ROWS:
        shown = np.argsort(figures["f1"], kind="stable")[:MAX_ROWS]
        title = f"The {MAX_ROWS} classes of {len(names):,} with the lowest F1"
    rows = [
        (names[c], f"{count_C[c]:,}", *(f"{figures[name][c]:.4f}" for name in columns))
        for c in shown.tolist()
    ]
    heads = ("class", "examples", "precision", "recall", "F1", "ROC-AUC", "average precision")
    return Table(title, heads, rows)


def _matrix(confusion_CC: np.ndarray, names: Sequence[str]) -> Matrix:
    share_CC = confusion_CC / np.maximum(confusion_CC.sum(1, keepdims=True), 1)
    # The square root makes a few percent of confusions visible.
    shade_CC = np.ceil(np.sqrt(share_CC) * NUM_SHADES).astype(int)
    return Matrix(
        names,
        [
            (names[c], list(zip(confusion_CC[c].tolist(), shade_CC[c].tolist(), strict=True)))
            for c in range(len(names))
        ],
    )


def _confusions(confusion_CC: np.ndarray, names: Sequence[str]) -> Table:
    off_CC = confusion_CC - np.diag(np.diag(confusion_CC))
    order = np.argsort(-off_CC, axis=None, kind="stable")[:NUM_CONFUSIONS]
    rows = []
    for label, predicted in zip(*np.unravel_index(order, off_CC.shape), strict=True):
        if count := off_CC[label, predicted]:
            share = f"{count / confusion_CC[label].sum():.1%}".replace("%", " %")
            rows.append((names[label], names[predicted], f"{count:,}", share))
    return Table("The most frequent confusions", ("label", "predicted", "examples", "of the label"), rows)


def _curves_by_class(predictions: Predictions, figures: Mapping[str, Any]) -> list[Plot]:
    names = predictions.class_names
    precision_C = np.asarray(figures["average_precision"])
    seen = np.unique(predictions.label)
    shown = seen[np.argsort(precision_C[seen], kind="stable")][:NUM_STYLES]
    which = "each class" if len(shown) == len(names) else f"the {len(shown)} classes with the lowest area"
    plots = []
    for title, area, curve, labels in (
        ("ROC", "roc_auc", roc_curve, ("false positive rate", "true positive rate")),
        ("Precision and recall", "average_precision", precision_recall_curve, ("recall", "precision")),
    ):
        series = []
        for style, c in enumerate(sorted(shown)):
            points = curve(predictions.log_probabilities[:, c], predictions.label == c)
            series.append(Series(names[c], *spread_along(points.x, points.y), style))
        areas = [(names[c], f"{figures[area][c]:.4f}") for c in sorted(shown)]
        least = min((figures[area][c] for c in shown), default=float("nan"))
        plots.append(
            plot(
                f"{title}, of {which} against the others",
                f"{labels[1].capitalize()} over {labels[0]}. The smallest area under a curve is {least:.4f}.",
                *labels,
                series,
                x_range=(0.0, 1.0),
                y_range=(0.0, 1.0),
                table=Table(f"Area under the curve: {title}", ("class", "area"), areas),
            )
        )
    return plots


def spread_along(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns points at even distances along the curve, because most thresholds are in one corner."""
    if len(x) <= MAX_POINTS:
        return x, y
    length = np.concatenate([[0.0], np.cumsum(np.hypot(np.diff(x), np.diff(y)))])
    keep = np.unique(np.searchsorted(length, np.linspace(0, length[-1], MAX_POINTS)).clip(0, len(x) - 1))
    return x[keep], y[keep]


def _reliability(figures: Mapping[str, Any]) -> Plot:
    count_K = np.asarray(figures["calibration_count"])
    accuracy_K = np.asarray(figures["calibration_accuracy"])
    confidence_K = np.asarray(figures["calibration_confidence"])
    edges = np.linspace(0, 1, len(count_K) + 1)
    filled = np.flatnonzero(count_K)
    error = figures["expected_calibration_error"]
    rows = [
        (
            f"{edges[k]:.2f} to {edges[k + 1]:.2f}",
            f"{count_K[k]:,}",
            f"{confidence_K[k]:.4f}",
            f"{accuracy_K[k]:.4f}",
        )
        for k in filled
    ]
    return plot(
        f"Reliability; expected calibration error {error:.4f}",
        f"Accuracy over confidence in {len(count_K)} bins; on the diagonal it is as often right as it says."
        f" The expected calibration error is {error:.4f}.",
        "confidence: probability of the prediction",
        "accuracy",
        [
            Series("as often right as it says", [0.0, 1.0], [0.0, 1.0], 9),
            Series("bin", confidence_K[filled], accuracy_K[filled], 1, has_dots=True, has_line=False),
        ],
        x_range=(0.0, 1.0),
        y_range=(0.0, 1.0),
        bars=[(edges[k] + 0.004, edges[k + 1] - 0.004, float(accuracy_K[k])) for k in filled],
        table=Table("Reliability", ("confidence", "examples", "mean confidence", "accuracy"), rows),
    )
