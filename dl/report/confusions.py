"""The confusion matrix of a report, and the table of the most frequent confusions, from sparse counts."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from dl.evaluation.outcome_figures import Confusions
from dl.evaluation.outcomes import Outcomes
from dl.report.plots import Table
from dl.report.task import NUM_SHADES

MAX_MATRIX = 20  # largest number of classes of a complete confusion matrix
NUM_CONFUSIONS = 15


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A confusion matrix: rows are labels, columns are predictions. Each cell is a count and a shade."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[int, int]]]]


def matrix(outcomes: Outcomes, confused: Confusions, names: Sequence[str]) -> Matrix | None:
    """Returns the confusion matrix, or the part of it with the most frequent confusions.

    With more than `MAX_MATRIX` classes these are the classes of the most frequent confusions, and the last
    column counts the predictions of all other classes. It is `None` if there are none.
    """
    caption, shown = "Confusion matrix", np.arange(len(names))
    if len(names) > MAX_MATRIX:
        pairs = np.stack([confused.label, confused.predicted], -1)[:MAX_MATRIX].ravel()
        shown = np.sort(np.array(list(dict.fromkeys(pairs.tolist()))[:MAX_MATRIX], np.int64))
        caption += f" of the {len(shown)} classes, of {len(names):,}, with the most frequent confusions"
    if not len(shown):
        return None
    size = len(shown)
    place_C = np.full(len(names), size)
    place_C[shown] = np.arange(size)
    row_N, column_N = place_C[np.asarray(outcomes.label)], place_C[np.asarray(outcomes.predicted)]
    pair_N = (row_N * (size + 1) + column_N)[row_N < size]
    cells = np.bincount(pair_N, minlength=size * (size + 1)).reshape(size, size + 1)
    share = cells / np.maximum(cells.sum(1, keepdims=True), 1)
    # The square root makes a few percent of confusions visible.
    shade = np.ceil(np.sqrt(share) * NUM_SHADES).astype(int)
    num_columns = size if size == len(names) else size + 1
    return Matrix(
        caption,
        [*(names[int(c)] for c in shown), "all others"][:num_columns],
        [
            (names[int(c)], list(zip(cells[k, :num_columns].tolist(), shade[k].tolist(), strict=False)))
            for k, c in enumerate(shown)
        ],
    )


def confusions_table(confused: Confusions, labelled_C: np.ndarray, names: Sequence[str]) -> Table:
    """Returns the table of the most frequent confusions."""
    rows = []
    for label, predicted, count in zip(*(each[:NUM_CONFUSIONS] for each in confused), strict=True):
        share = f"{count / labelled_C[label]:.1%}".replace("%", " %")
        rows.append((names[label], names[predicted], f"{count:,}", share))
    title = "The most frequent confusions"
    if (num_pairs := len(confused.counts)) > NUM_CONFUSIONS:
        title += f", of {num_pairs:,} pairs of label and prediction"
    return Table(title, ("label", "predicted", "examples", "of the label"), rows)
