"""The sections of a classifier: confusion matrix, curves of each class, calibration, mistakes."""

import csv
import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from dl.errors import UserError
from dl.evaluation.figures import class_areas, outcomes_of
from dl.evaluation.outcome_figures import confusions, outcome_figures
from dl.report.class_curves import curves_by_class, curves_of_outcomes, reliability_plot
from dl.report.confusions import Matrix, confusions_table, matrix
from dl.report.mistakes import Mistake, most_confident_mistakes
from dl.report.plots import Plot, Table
from dl.runs.predictions import ClassificationOutcomes, Predictions
from dl.types import Source

MAX_ROWS = 50  # classes in a table
NUM_BEST = 10  # of these, if there are more classes, those with the highest F1

_COLUMNS = {
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "roc_auc": "ROC-AUC",
    "average_precision": "average precision",
}
"""The heads of the columns of the metrics of each class."""


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
      all_classes: the same of all classes as CSV; empty if the table has all of them.
      matrix: the confusion matrix, or the part with the most frequent confusions. `None` if there is none.
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
    all_classes: str
    worst: Sequence[str]
    matrix: Matrix | None
    confusions: Table
    curves: Sequence[Plot]
    mistakes: Sequence[Mistake]
    num_mistakes: int


def classifier_sections(
    predictions: Predictions | ClassificationOutcomes,
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
    names, index, sample = predictions.class_names, predictions.index, predictions.sample
    full = predictions if isinstance(predictions, Predictions) else None
    if isinstance(predictions, Predictions):
        outcomes = outcomes_of(predictions.log_probabilities, predictions.label)
    else:
        outcomes = predictions.outcomes
    is_number_N = ~np.isnan(outcomes.brier)
    if left_out := int((~is_number_N).sum()):
        if left_out == len(is_number_N):
            raise UserError(f"all {left_out:,} predictions are NaN; train the run again")
        sample += f", without {left_out:,} whose predictions are no numbers (NaN)"
        index, outcomes = jax.tree.map(lambda values_N: values_N[is_number_N], (index, outcomes))
        if full is not None:
            log_p_NC = full.log_probabilities[is_number_N]
            full = dataclasses.replace(full, index=index, label=outcomes.label, log_probabilities=log_p_NC)
    figures = outcome_figures(outcomes, len(names))
    if full is not None:
        figures |= class_areas(full.log_probabilities, full.label)
        curves = curves_by_class(full, figures)
    else:
        curves = curves_of_outcomes(outcomes, len(names))
    confused = confusions(outcomes, len(names))
    labelled_C, recall_C = np.asarray(figures["labelled"]), np.asarray(figures["recall"])
    by_recall = [c for c in np.argsort(recall_C, kind="stable") if labelled_C[c]][:3]
    classes, all_classes = _classes(figures, names)
    return Classifier(
        sample,
        _figures(figures),
        float(figures["accuracy"]),
        float(figures["expected_calibration_error"]),
        classes,
        all_classes,
        [f"{names[c]} (recall {recall_C[c]:.1%})".replace("%", " %") for c in by_recall],
        matrix(outcomes, confused, names),
        confusions_table(confused, labelled_C, names),
        [*curves, reliability_plot(figures)],
        most_confident_mistakes(outcomes, index, names, pictures, texts),
        int(confused.counts.sum()),
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


def _classes(figures: Mapping[str, Any], names: Sequence[str]) -> tuple[Table, str]:
    """Returns the table of the metrics of classes, and those of all classes as CSV if it has not all."""
    count_C = np.asarray(figures["labelled"])
    columns = [name for name in _COLUMNS if name in figures]
    shown, title, everything = np.arange(len(names)), "Figures of each class", ""
    if len(names) > MAX_ROWS:
        # The F1 of a class without examples is 0 and says nothing.
        shown = np.flatnonzero(count_C)
        shown = shown[np.argsort(np.asarray(figures["f1"])[shown], kind="stable")]
        title = f"The {len(shown):,} classes of {len(names):,} that have examples"
        if len(shown) > MAX_ROWS:
            shown = np.concatenate([shown[: MAX_ROWS - NUM_BEST], shown[-NUM_BEST:]])
            title = f"The {MAX_ROWS - NUM_BEST} classes of {len(names):,} with the lowest F1, and the "
            title += f"{NUM_BEST} with the highest"
        file = io.StringIO()
        writer = csv.writer(file)
        writer.writerow(["class", "examples", *columns])
        values = [np.asarray(figures[name]).tolist() for name in columns]
        writer.writerows(zip(names, count_C.tolist(), *values, strict=True))
        everything = file.getvalue()
    rows = [
        (names[c], f"{count_C[c]:,}", *(f"{figures[name][c]:.4f}" for name in columns))
        for c in shown.tolist()
    ]
    return Table(title, ("class", "examples", *(_COLUMNS[name] for name in columns)), rows), everything
