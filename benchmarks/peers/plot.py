"""The plots of the comparison: ratios of throughput, and the times of whole commands."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.peers.contestants import OURS, PEERS
from benchmarks.peers.rounds import Comparison
from benchmarks.peers.table import ratios

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("tab:orange", "tab:blue", "tab:gray")


def plot_ratios(comparisons: Sequence[Comparison]) -> "Figure":
    """Plots the ratio of `dl` to the best contestant of each framework, with its 95 % interval."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 1 + 0.5 * len(comparisons)), layout="constrained")
    axes = figure.subplots()
    for number, framework in enumerate(PEERS):
        rows = [(row, of[framework]) for row, of in enumerate(map(ratios, comparisons)) if framework in of]
        if not rows:
            continue
        estimates = [interval.estimate for _, interval in rows]
        errors = [
            [interval.estimate - interval.low for _, interval in rows],
            [interval.high - interval.estimate for _, interval in rows],
        ]
        places = [row + 0.12 * (2 * number - 1) for row, _ in rows]
        axes.errorbar(estimates, places, xerr=errors, fmt="o", color=COLOURS[number], label=framework)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(comparisons)), [found.network for found in comparisons])
    axes.set_ylim(len(comparisons) - 0.5, -0.5)
    axes.set(xscale="log", xlabel=f"examples/s of {OURS} ÷ those of its peer, at its best settings")
    ticks = (0.25, 0.5, 1, 2, 4)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.legend()
    return figure


def plot_commands(seconds: Mapping[str, Mapping[str, Sequence[float]]]) -> "Figure":
    """Plots the time of each whole command: a bar for the median, and a point for each round.

    Args:
      seconds: seconds of each round by command and by cache, `cold` and `warm`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 1 + 0.8 * len(seconds)), layout="constrained")
    axes = figure.subplots()
    names = list(seconds)
    for number, cache in enumerate(("cold", "warm")):
        rows = [(row + 0.4 * (number - 0.5), seconds[name][cache]) for row, name in enumerate(names)]
        rows = [(place, each) for place, each in rows if each]
        label = f"{cache} cache"
        axes.barh(
            [place for place, _ in rows],
            [float(np.median(each)) for _, each in rows],
            height=0.38,
            color=COLOURS[2 - number],
            label=label,
        )
        for place, each in rows:
            axes.plot(each, [place] * len(each), "k.", markersize=4)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(xlabel="seconds from start to exit")
    axes.legend()
    return figure
