"""What a race has found: a Markdown table of its lanes, and a figure."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def margin(lane: dict[str, Any]) -> str:
    return "unknown" if lane["interval"] is None else f"{lane['interval']:.2%}"


def format_table(
    lanes: Sequence[dict[str, Any]], contestants: str, tuned: str, reference: str | None = None
) -> str:
    """Returns the rows as a Markdown table; `better` and `worse` only where the interval excludes zero."""
    lines = [
        f"| {contestants} | {tuned} | test accuracy, mean of {len(lanes[0]['scores'])} seeds | ± 95 % |",
        "|---|---|---|---|",
    ]
    if reference is not None:
        lines = [f"{lines[0]} points more than {reference} (95 %) | |", f"{lines[1]}---|---|"]
    for lane in lanes:
        edge = " (edge of the range)" if lane["is_at_the_edge"] else ""
        number = f"{lane[tuned]:g}{edge}" if len(lane["values"]) > 1 else ""
        line = f"| {lane['name']} | {number} | {lane['test']:.2%} | {margin(lane)} |"
        lines.append(line if reference is None else f"{line} {_compared(lane)} |")
    return "\n".join(lines).replace("%", " %").replace("95  %", "95 %")


def _compared(lane: dict[str, Any]) -> str:
    """Returns the last two cells of a row."""
    difference = lane.get("difference")
    if difference is None:
        return " | "
    shown = f"{100 * difference['estimate']:+z.2f}"
    if difference["interval"] is None:
        return f"{shown} | {difference['test']}"
    low, high = (100 * bound for bound in difference["interval"])
    verdict = difference["verdict"] if difference["verdict"] in ("better", "worse") else ""
    return f"{shown} ({low:+.2f} to {high:+.2f}) | {verdict}"


def plot(
    lanes: Sequence[dict[str, Any]],
    tuned: str,
    path: Path,
    metric: str = "loss",
    reference: str | None = None,
) -> None:
    """Writes the validation metric over the tuned number, and the test accuracy with its interval."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    styles = ["-", "--", ":", "-."]
    factor, key, label = 1, "validation_losses", "validation loss (nats)"
    if metric == "accuracy":
        factor, key, label = 100, "validation_accuracies", "validation accuracy (%)"
    for number, lane in enumerate(lanes):
        figures = [math.nan if value is None else factor * value for value in lane[key]]
        look = {"linestyle": styles[number // 10 % len(styles)], "color": f"C{number % 10}"}
        if len(figures) == 1:  # nothing was tuned: a level
            left.axhline(figures[0], label=lane["name"], **look)
        else:
            left.plot(lane["values"], figures, marker=".", label=lane["name"], **look)
    left.set(xscale="log", yscale="log" if metric == "loss" else "linear", xlabel=tuned, ylabel=label)
    figure.legend(loc="outside lower center", fontsize="small", ncols=7)
    names = [lane["name"] for lane in reversed(lanes)]
    means = [100 * lane["test"] for lane in reversed(lanes)]
    margins = [100 * (lane["interval"] or 0.0) for lane in reversed(lanes)]  # none of a single seed
    right.errorbar(means, names, xerr=margins, fmt="o", capsize=3)
    if reference is not None:
        right.axvline(means[names.index(reference)], color="grey", linestyle=":")
    right.set(xlabel="test accuracy (%), 95 % interval over seeds")
    right.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120)
