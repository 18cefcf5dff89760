"""The section of a report about a kind of task that is no classification: its figures, plots and examples."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from dl.evaluation.figure import Figure
from dl.report.plots import Plot, Table

NUM_SHADES = 10
NUM_BINS = 20


@dataclasses.dataclass(frozen=True)
class Example:
    """One example that is shown.

    Attributes:
      pictures: name and PNG, as a data URI, of each.
      words: text and shade, 0 to `NUM_SHADES`, of each part of it.
      caption: a line below.
    """

    pictures: Sequence[tuple[str, str]]
    words: Sequence[tuple[str, int]]
    caption: str


@dataclasses.dataclass(frozen=True)
class TaskSection:
    """What is shown of a task.

    Attributes:
      title: of the section.
      sample: of how many examples, in words.
      figures: name and value of each.
      plots: in order.
      tables: likewise.
      examples: by title, such as the worst ones.
    """

    title: str
    sample: str
    figures: Sequence[tuple[str, str]]
    plots: Sequence[Plot] = ()
    tables: Sequence[Table] = ()
    examples: Sequence[tuple[str, Sequence[Example]]] = ()


def figure_text(figure: Figure) -> str:
    """Returns a value with its interval, where there is one."""
    if not figure.method:
        return f"{figure.value:.4g}"
    return f"{figure.value:.4g} (95 % interval {figure.low:.4g} to {figure.high:.4g}; {figure.method})"


def histogram(values: np.ndarray) -> tuple[list[tuple[float, float, float]], list[tuple[str, str]]]:
    """Returns the bars of the finite values, and the rows of a table of them."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return [], []
    counts, edges = np.histogram(finite, NUM_BINS)
    bars = [
        (float(low), float(high), float(count))
        for low, high, count in zip(edges, edges[1:], counts, strict=False)
    ]
    return bars, [(f"{low:.4g} to {high:.4g}", f"{count:,.0f}") for low, high, count in bars]
