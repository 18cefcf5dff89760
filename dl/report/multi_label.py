"""The section of a multi-label classifier: metrics and curves of each label.

Shapes: N examples, C labels, K bins.
"""

import numpy as np

from dl.evaluation.multi_label import MultiLabelFigures, multi_label_figures
from dl.evaluation.ranking import precision_recall_curve
from dl.report.class_curves import spread_along
from dl.report.plots import NUM_STYLES, Plot, Series, Table, plot
from dl.report.task import TaskSection, figure_text
from dl.runs.predictions import MultiLabel

MAX_ROWS = 50
NUM_BINS = 10  # bins of the reliability diagram

_NAMES = {
    "f1_micro": "F1 of all labels together (micro)",
    "f1_macro": "mean F1 of the labels (macro)",
    "average_precision_macro": "mean average precision of the labels (macro)",
}


def multi_label_section(predictions: MultiLabel) -> TaskSection:
    """Returns the section of a multi-label classifier. Examples with a NaN are left out and counted."""
    is_number_N = ~np.isnan(predictions.log_odds).any(1)
    log_odds_NC, label_NC = predictions.log_odds[is_number_N], predictions.label[is_number_N]
    left_out = int((~is_number_N).sum())
    shown = [("examples left out", f"{left_out:,}, with an output that is no number")] * (left_out > 0)
    if not len(log_odds_NC):
        return TaskSection("Labels", predictions.sample, shown)
    figures = multi_label_figures(log_odds_NC, label_NC)
    shown = [(_NAMES[name], figure_text(figure)) for name, figure in figures.overall.items()] + shown
    plots = [
        _curves(predictions.class_names, figures, log_odds_NC, label_NC),
        _reliability(log_odds_NC, label_NC),
    ]
    table = _table(predictions.class_names, figures)
    return TaskSection("Labels", predictions.sample, shown, plots, [table])


def _table(names: tuple[str, ...], figures: MultiLabelFigures) -> Table:
    shown = np.arange(len(names))
    title = "Figures of each label; it is predicted where its probability is > ½"
    if len(names) > MAX_ROWS:
        shown = np.argsort(figures.f1, kind="stable")[:MAX_ROWS]
        title = f"The {MAX_ROWS} labels of {len(names):,} with the lowest F1"
    columns = (figures.precision, figures.recall, figures.f1, figures.average_precision)
    rows = [
        (names[c], f"{figures.count[c]:,}", *(f"{column[c]:.4f}" for column in columns))
        for c in shown.tolist()
    ]
    return Table(title, ("label", "examples", "precision", "recall", "F1", "average precision"), rows)


def _curves(
    names: tuple[str, ...], figures: MultiLabelFigures, log_odds_NC: np.ndarray, label_NC: np.ndarray
) -> Plot:
    seen = np.flatnonzero(figures.count)
    shown = sorted(seen[np.argsort(figures.average_precision[seen], kind="stable")][:NUM_STYLES].tolist())
    series = []
    for style, c in enumerate(shown):
        points = precision_recall_curve(log_odds_NC[:, c], label_NC[:, c])
        series.append(Series(names[c], *spread_along(points.x, points.y), style))
    which = "each label" if len(shown) == len(names) else f"the {len(shown)} labels with the smallest area"
    least = min((figures.average_precision[c] for c in shown), default=float("nan"))
    areas = [(names[c], f"{figures.average_precision[c]:.4f}") for c in shown]
    return plot(
        f"Precision and recall of {which}",
        f"Precision over recall. The smallest area under a curve is {least:.4f}.",
        "recall",
        "precision",
        series,
        x_range=(0.0, 1.0),
        y_range=(0.0, 1.0),
        table=Table("Average precision", ("label", "area"), areas),
    )


def _reliability(log_odds_NC: np.ndarray, label_NC: np.ndarray) -> Plot:
    p_M = (1 / (1 + np.exp(-np.clip(log_odds_NC.astype(np.float64), -60, 60)))).ravel()
    bin_M = np.minimum((p_M * NUM_BINS).astype(int), NUM_BINS - 1)
    count_K = np.bincount(bin_M, minlength=NUM_BINS)
    filled = np.flatnonzero(count_K)
    mean_K, share_K = (
        np.bincount(bin_M, weights, NUM_BINS)[filled] / count_K[filled] for weights in (p_M, label_NC.ravel())
    )
    edges = np.linspace(0, 1, NUM_BINS + 1)
    rows = [
        (f"{edges[k]:.1f} to {edges[k + 1]:.1f}", f"{count_K[k]:,}", f"{mean:.4f}", f"{share:.4f}")
        for k, mean, share in zip(filled.tolist(), mean_K, share_K, strict=True)
    ]
    return plot(
        "Reliability of all labels together",
        f"How often a label is there over its predicted probability, in {NUM_BINS} bins; on the diagonal "
        "both are equal.",
        "predicted probability of the label",
        "share of examples that have it",
        [
            Series("as often there as predicted", [0.0, 1.0], [0.0, 1.0], 9),
            Series("bin", mean_K, share_K, 1, has_dots=True, has_line=False),
        ],
        x_range=(0.0, 1.0),
        y_range=(0.0, 1.0),
        table=Table("Reliability", ("probability", "predictions", "mean probability", "share"), rows),
    )
