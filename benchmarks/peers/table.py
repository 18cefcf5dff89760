"""The table of a comparison: medians, and ratios with intervals."""

import statistics
from collections.abc import Sequence

import numpy as np

from benchmarks.peers.contestants import OURS, PEERS
from benchmarks.peers.networks import NETWORKS
from benchmarks.peers.rounds import Comparison
from dl.evaluation.intervals import Interval, bootstrap

HEAD = (
    "network",
    "batch",
    f"{OURS}",
    *(name for name in PEERS),
    *(f"{OURS} / {name}" for name in PEERS),
    "MiB",
)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """Returns the ratio of two medians over the same rounds, with its 95 % percentile interval.

    Whole rounds are drawn with replacement, because a machine may change its speed between two rounds. With a
    single round the interval has no width.
    """
    if len(ours) < 2:
        value = ours[0] / theirs[0]
        return Interval(value, value, value)
    return bootstrap(lambda a, b: float(np.median(a) / np.median(b)), ours, theirs)


def ratios(found: Comparison) -> dict[str, Interval]:
    """Returns the ratio of `dl` to the best contestant of each framework, and to the best of all, `best`."""
    if not found.rates.get(OURS):
        return {}
    best = {framework: found.best_of(framework) for framework in PEERS}
    rates = {framework: found.rates[label] for framework, label in best.items() if label is not None}
    made = {framework: ratio(found.rates[OURS], theirs) for framework, theirs in rates.items()}
    if made:
        made["best"] = made[min(made, key=lambda framework: made[framework].estimate)]
    return made


def table(comparisons: Sequence[Comparison]) -> str:
    """Returns a table in Markdown: examples per second, ratios with intervals, and memory.

    The memory is the largest of the whole process, in MiB: of `dl`, and of the best of each framework.
    """
    lines = [_line(HEAD), _line(["---", *["---:"] * (len(HEAD) - 1)])]
    lines += [_line(_cells(found)) for found in comparisons]
    return "\n".join(lines)


def settings(comparisons: Sequence[Comparison]) -> str:
    """Returns the best variant of each framework on each network, one line for each network."""
    lines = []
    for found in comparisons:
        best = [label for framework in PEERS if (label := found.best_of(framework))]
        lines.append(f"{found.network}: {'; '.join(best) or 'no peer'}; {NETWORKS[found.network].optimizer}")
        lines += [f"  left out: {label} ({reason})" for label, reason in found.left_out.items()]
    return "\n".join(lines)


def _cells(found: Comparison) -> list[str]:
    labels = [OURS if found.rates.get(OURS) else None, *(found.best_of(framework) for framework in PEERS)]
    rates = [f"{statistics.median(found.rates[label]):,.0f}" if label else "-" for label in labels]
    made = ratios(found)
    shown = [
        f"{made[name].estimate:.2f} ({made[name].low:.2f} to {made[name].high:.2f})" if name in made else "-"
        for name in PEERS
    ]
    memory = [f"{found.peak_bytes[label] / 2**20:,.0f}" if label else "-" for label in labels]
    return [found.network, str(NETWORKS[found.network].batch_size), *rates, *shown, " / ".join(memory)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
