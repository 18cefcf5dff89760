"""The results of a benchmark as a Markdown table and a plot."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def curve_key(metric: str) -> str:
    """Returns the key of the validation curve of a metric in benchmark.json."""
    return f"validation_{ {'loss': 'losses', 'accuracy': 'accuracies'}.get(metric, metric) }"


def shown_as(value: float, metric: str) -> str:
    """Returns a metric as text: an accuracy in percent."""
    return f"{value:.2%}" if metric == "accuracy" else f"{value:.4g}"


def bounds(row: dict[str, Any], metric: str) -> str:
    """Returns the 95 % interval of a row over its seeds, as text."""
    if row["interval"] is None:
        return "unknown"
    return " to ".join(shown_as(bound, metric) for bound in row["interval"])


def format_table(
    rows: Sequence[dict[str, Any]],
    methods: str,
    tuned: str,
    reference: str | None = None,
    metric: str = "accuracy",
) -> str:
    """Returns the rows as a Markdown table; `better` and `worse` only where the interval excludes zero."""
    lines = [
        f"| {methods} | {tuned} | test {metric}, mean of {len(rows[0]['scores'])} seeds | 95 % |",
        "|---|---|---|---|",
    ]
    if reference is not None:
        unit = "points " if metric == "accuracy" else ""
        lines = [f"{lines[0]} {unit}more than {reference} (95 %) | |", f"{lines[1]}---|---|"]
    for row in rows:
        edge = " (edge of the range)" if row["is_at_the_edge"] else ""
        number = f"{row[tuned]:g}{edge}" if len(row["values"]) > 1 else ""
        line = f"| {row['name']} | {number} | {shown_as(row['test'], metric)} | {bounds(row, metric)} |"
        lines.append(line if reference is None else f"{line} {_compared(row, metric)} |")
    return "\n".join(lines).replace("%", " %").replace("95  %", "95 %")


def _compared(row: dict[str, Any], metric: str) -> str:
    """Returns the last two cells of a row."""
    difference = row.get("difference")
    if difference is None:
        return " | "
    factor, places = (100, ".2f") if metric == "accuracy" else (1, ".4g")
    shown = f"{factor * difference['estimate']:+z{places}}"
    if difference["interval"] is None:
        return f"{shown} | {difference['test']}"
    low, high = (factor * bound for bound in difference["interval"])
    verdict = difference["verdict"] if difference["verdict"] in ("better", "worse") else ""
    return f"{shown} ({low:+{places}} to {high:+{places}}) | {verdict}"


def plot(
    rows: Sequence[dict[str, Any]],
    tuned: str,
    path: Path,
    metric: str = "loss",
    reference: str | None = None,
    test_metric: str = "accuracy",
) -> None:
    """Writes the validation metric over the tuned number, and the test metric with its interval."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    styles = ["-", "--", ":", "-."]
    factor, label = scale(metric)
    lowest = math.inf
    for number, row in enumerate(rows):
        figures = [math.nan if value is None else factor * value for value in row[curve_key(metric)]]
        lowest = min([lowest, *(value for value in figures if not math.isnan(value))])
        look = {"linestyle": styles[number // 10 % len(styles)], "color": f"C{number % 10}"}
        if len(figures) == 1:  # nothing was tuned: draw a horizontal line
            left.axhline(figures[0], label=row["name"], **look)
        else:
            left.plot(row["values"], figures, marker=".", label=row["name"], **look)
    yscale = "log" if metric == "loss" and lowest > 0 else "linear"
    left.set(xscale="log", yscale=yscale, xlabel=tuned, ylabel=f"validation {label}")
    figure.legend(loc="outside lower center", fontsize="small", ncols=7)
    names = [row["name"] for row in reversed(rows)]
    factor, label = scale(test_metric)
    means = [factor * row["test"] for row in reversed(rows)]
    # A single seed has no interval.
    intervals = [row["interval"] or [row["test"]] * 2 for row in reversed(rows)]
    lows, highs = zip(*intervals, strict=True)
    margins = [
        [mean - factor * low for mean, low in zip(means, lows, strict=True)],
        [factor * high - mean for mean, high in zip(means, highs, strict=True)],
    ]
    right.errorbar(means, names, xerr=margins, fmt="o", capsize=3)
    if reference is not None:
        right.axvline(means[names.index(reference)], color="grey", linestyle=":")
    right.set(xlabel=f"test {label}, 95 % interval over seeds")
    right.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120)


def scale(metric: str) -> tuple[int, str]:
    """Returns the factor and the label that a metric is drawn with."""
    return (100, "accuracy (%)") if metric == "accuracy" else (1, metric)
