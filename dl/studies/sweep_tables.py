"""The results of a sweep: a table of its trials, and a plot with an axis for each option."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dl.runs.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_ROWS = 100  # trials in a table
MAX_TICKS = 12  # of an axis

Rows = Sequence[Mapping[str, Any]]


def table_of(rows: Rows, metric: str) -> Table:
    """Returns a table of the first `MAX_ROWS` trials, with the error of each failed trial."""
    names = list(rows[0]["options"])
    title = f"{len(rows)} trials by {metric}"
    if len(rows) > MAX_ROWS:
        title = f"The first {MAX_ROWS} of {len(rows):,} trials by {metric}; sweep.json has all"
    return Table(
        title,
        ["trial", *names, metric, "run"],
        [
            [
                str(row["trial"]),
                *(_text(row["options"][name]) for name in names),
                row["error"] if row["value"] is None else f"{row['value']:.6g}",
                row["folder"] + (f" member {row['member']}" if "member" in row else ""),
            ]
            for row in rows[:MAX_ROWS]
        ],
    )


def plot(rows: Rows, space: Mapping[str, Mapping[str, Any]], metric: str, sign: float) -> "Figure":
    """Plots parallel coordinates (Inselberg 1985): a line for each trial, through its options.

    Args:
      rows: the trials. Those without a value are left out.
      space: for each option, the fields of its dimension.
      metric: the name of the metric.
      sign: 1 if large values are good, -1 if small values are good. The best lines are yellow.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    rows = [row for row in rows if row["value"] is not None]
    names = list(rows[0]["options"])
    columns = [[row["options"][name] for row in rows] for name in names] + [[row["value"] for row in rows]]
    figure = Figure(figsize=(2.0 + 1.8 * len(columns), 5), layout="constrained")
    axes = figure.subplots()
    places = []
    for number, (name, values) in enumerate(zip([*names, metric], columns, strict=True)):
        is_log = bool(space.get(name, {}).get("is_log"))
        places.append(_draw_axis(axes, number, values, is_log))
    ranked = sorted(range(len(rows)), key=lambda k: sign * rows[k]["value"])
    for rank, k in enumerate(ranked):
        color = colormaps["viridis"](rank / max(len(rows) - 1, 1))
        axes.plot(range(len(columns)), [place[k] for place in places], color=color, alpha=0.8, linewidth=1.5)
    axes.set_xticks(range(len(columns)), [*names, metric])
    axes.set_yticks([])
    axes.set(xlim=(-0.3, len(columns) - 0.4), ylim=(-0.08, 1.08))
    axes.set_title(f"{len(rows)} trials, the best in yellow", fontsize="medium")
    for side in axes.spines.values():
        side.set_visible(False)
    return figure


def _draw_axis(axes: "Axes", number: int, values: Sequence[Any], is_log: bool) -> list[float]:
    """Draws a vertical axis with ticks; returns the height of each value on it, from 0 to 1."""
    is_number = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    known = sorted(set(values)) if is_number else list(dict.fromkeys(map(_text, values)))
    if is_number:
        scaled = [math.log(value) if is_log else value for value in values]
        low, high = min(scaled), max(scaled)
        heights = [(value - low) / (high - low) if high > low else 0.5 for value in scaled]
        ends = [(0.0, known[0]), (1.0, known[-1])] if high > low else [(0.5, known[0])]
        ticks = [(heights[values.index(v)], v) for v in known] if len(known) <= 6 else ends
    else:
        steps = max(len(known) - 1, 1)
        place_of = {value: place / steps for place, value in enumerate(known)}
        heights = [place_of[_text(value)] for value in values]
        every = -(-len(known) // MAX_TICKS)
        ticks = [(place_of[value], value) for value in known[::every]]
    axes.axvline(number, color="0.6", linewidth=1)
    paper = {
        "facecolor": "white",
        "alpha": 0.8,
        "linewidth": 0,
        "pad": 1,
    }  # keeps the text readable over the lines
    for height, value in ticks:
        label = f"{value:.4g}" if isinstance(value, float) else str(value)
        axes.annotate(
            label,
            (number, height),
            (5, 0),
            textcoords="offset points",
            fontsize="small",
            va="center",
            bbox=paper,
        )
    return heights


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
