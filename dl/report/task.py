"""The section of a report about a task that is not a classification: its metrics, plots and examples."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from dl.evaluation.figure import Figure
from dl.report.plots import Plot, Table

NUM_SHADES = 10
Words = Sequence[tuple[str, int]]
"""The text and the shade, 0 to `NUM_SHADES`, of each token."""
NUM_BINS = 20


@dataclasses.dataclass(frozen=True)
class Example:
    """One example that is shown.

    Attributes:
      pictures: name and PNG (as a data URI) of each picture.
      lines: name and words of each line of text; the name is empty if there is one line.
      caption: the line below the example.
    """

    pictures: Sequence[tuple[str, str]]
    lines: Sequence[tuple[str, Words]]
    caption: str


@dataclasses.dataclass(frozen=True)
class TaskSection:
    """The section about a task.

    Attributes:
      title: the title of the section.
      sample: on how many examples the section is based, as text.
      figures: the name and the value of each metric.
      plots: the plots in order.
      tables: the tables in order.
      examples: groups of examples with their titles, such as the worst examples.
    """

    title: str
    sample: str
    figures: Sequence[tuple[str, str]]
    plots: Sequence[Plot] = ()
    tables: Sequence[Table] = ()
    examples: Sequence[tuple[str, Sequence[Example]]] = ()


def figure_text(figure: Figure) -> str:
    """Returns a metric as text, with its interval if there is one."""
    if not figure.method:
        return f"{figure.value:.4g}"
    return f"{figure.value:.4g} (95 % interval {figure.low:.4g} to {figure.high:.4g}; {figure.method})"


def histogram(values: np.ndarray) -> tuple[list[tuple[float, float, float]], list[tuple[str, str]]]:
    """Returns the bars of a histogram of the finite values, and the rows of its table."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return [], []
    counts, edges = np.histogram(finite, NUM_BINS)
    bars = [
        (float(low), float(high), float(count))
        for low, high, count in zip(edges, edges[1:], counts, strict=False)
    ]
    return bars, [(f"{low:.4g} to {high:.4g}", f"{count:,.0f}") for low, high, count in bars]
