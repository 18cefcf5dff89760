"""The curves of a classifier: of each class against the others, of its confidence, and its reliability."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dl.evaluation.outcome_figures import coverage_curve, top_k_curve
from dl.evaluation.outcomes import Outcomes
from dl.evaluation.ranking import precision_recall_curve, roc_curve
from dl.report.plots import MAX_POINTS, NUM_STYLES, Plot, Series, Table, plot
from dl.runs.predictions import Predictions


def curves_by_class(predictions: Predictions, figures: Mapping[str, Any]) -> list[Plot]:
    """Returns ROC, and precision and recall, of the classes with the lowest average precision."""
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


def curves_of_outcomes(outcomes: Outcomes, num_classes: int) -> list[Plot]:
    """Returns the accuracy of the most probable classes, and that of the most confident predictions."""
    return [
        _shares(
            "Accuracy of the k most probable classes",
            "k",
            *top_k_curve(outcomes, num_classes),
            has_dots=True,
        ),
        _shares(
            "Accuracy of the most confident predictions",
            "fraction of the examples, the most confident first",
            *coverage_curve(outcomes, MAX_POINTS),
            has_dots=False,
        ),
    ]


def reliability_plot(figures: Mapping[str, Any]) -> Plot:
    """Returns the reliability diagram."""
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


def spread_along(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns points at even distances along the curve, because most thresholds are in one corner."""
    if len(x) <= MAX_POINTS:
        return x, y
    length = np.concatenate([[0.0], np.cumsum(np.hypot(np.diff(x), np.diff(y)))])
    keep = np.unique(np.searchsorted(length, np.linspace(0, length[-1], MAX_POINTS)).clip(0, len(x) - 1))
    return x[keep], y[keep]


def _shares(title: str, x_label: str, x: np.ndarray, y: np.ndarray, has_dots: bool) -> Plot:
    places = np.unique(np.linspace(0, len(x) - 1, min(len(x), 20)).round().astype(int))
    return plot(
        title,
        f"{title}: {y[0]:.4f} at first, {y[-1]:.4f} at last.",
        x_label,
        "accuracy",
        [Series("accuracy", x, y, 0, has_dots=has_dots)],
        has_whole_x=has_dots,
        y_range=(0.0, 1.0),
        table=Table(title, (x_label, "accuracy"), [(f"{x[k]:.4g}", f"{y[k]:.4f}") for k in places]),
    )
