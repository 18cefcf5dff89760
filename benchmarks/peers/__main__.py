"""Trains the same networks in `dl`, PyTorch and Keras, side by side on the CPU, and prints who is faster.

    python -m benchmarks.peers                          # all networks
    python -m benchmarks.peers classic gpt --rounds 9   # two networks
    python -m benchmarks.peers --json peers.json --plot peers.png
    python -m benchmarks.peers --commands               # whole commands to 98 % on MNIST

Every contestant has the network, the batch size, the optimizer and the data, in float32, and all cores. It
lives in a process of its own, and only one of them computes at a time. Before it is timed, it must have as
many parameters as the network of `dl`, and with the same weights the same loss on the same batch, and again
after three steps; otherwise it is refused. `dl` is run by its trainer as it is. The others have their best
settings: PyTorch eager or compiled, with channels last or not; Keras on TensorFlow or JAX, jitted or not.
Each variant has one turn. The best of each framework takes part in the rounds, with and without a setting of
the allocator that keeps memory between steps.

`--commands` times whole commands instead, from start to exit, with a cold and a warm cache. It needs MNIST.

It needs the extra `peers`, and Linux; a framework that is not installed is left out by name. Exits with
status 1 if a network was not the same.
"""

import argparse
import importlib.metadata
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.peers.commands import command_table, time_commands
from benchmarks.peers.contestants import OURS, PEERS, missing
from benchmarks.peers.networks import NETWORKS
from benchmarks.peers.plot import plot_commands, plot_ratios
from benchmarks.peers.process import num_cores
from benchmarks.peers.rounds import Comparison, compare
from benchmarks.peers.table import ratios, settings, table
from dl.cli.exit_status import run_as_command
from dl.errors import UserError
from dl.runs.console import save, save_text
from dl.runs.provenance import machine, software
from dl.system.files import why_no_output

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROUNDS, COMMAND_ROUNDS = 7, 3


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the options."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__.splitlines()[0])
    made.add_argument(
        "networks", nargs="*", help=f"Networks to compare: {', '.join(NETWORKS)}. Default: all."
    )
    made.add_argument("--rounds", type=int, help=f"Rounds. Default: {ROUNDS}, of commands {COMMAND_ROUNDS}.")
    made.add_argument(
        "--seconds", type=float, default=1.5, help="Time of a turn, rounded up to whole epochs."
    )
    made.add_argument("--json", type=Path, help="File for every measurement.")
    made.add_argument("--plot", type=Path, help="File for a plot, PNG, SVG or PDF.")
    made.add_argument("--commands", action="store_true", help="Time whole commands instead of steps.")
    made.add_argument(
        "--with-unjitted",
        action="store_true",
        help="Try Keras on JAX without jit too, which runs each operation by itself.",
    )
    return made


def main() -> None:
    """Reads the options and runs the comparison."""
    options = parser().parse_args()
    _check(options)
    frameworks = []
    for framework in PEERS:
        if lacking := missing(framework):
            print(
                f"{framework} is left out: {' and '.join(lacking)} is not installed; install the extra peers"
            )
        else:
            frameworks.append(framework)
    print(f"{num_cores()} cores for every contestant, float32, {', '.join(_versions())}", flush=True)
    if options.commands:
        _commands(options, frameworks)
    else:
        _networks(options, frameworks)


def _check(options: argparse.Namespace) -> None:
    """Raises UserError for options that cannot be used, before anything is measured."""
    if unknown := [name for name in options.networks if name not in NETWORKS]:
        raise UserError(f"{unknown[0]!r} is not a network; choose from {', '.join(NETWORKS)}")
    if options.rounds is not None and options.rounds < 1:
        raise UserError(f"--rounds {options.rounds} is not a number of rounds; give 1 or more")
    if not 0 < options.seconds <= 60:
        raise UserError(
            f"--seconds {options.seconds:g} is not the time of a turn; give more than 0, at most 60"
        )
    for path in (options.json, options.plot):
        if path is not None and (reason := why_no_output(path)):
            raise UserError(f"{path} cannot be written ({reason}); choose another file")
    if options.plot is not None and options.plot.suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"{options.plot} is not the name of a plot; end it in .png, .svg or .pdf")
    if sys.platform != "linux":
        raise UserError(f"the comparison runs on Linux, not on {sys.platform}; use another machine")


def _networks(options: argparse.Namespace, frameworks: Sequence[str]) -> None:
    comparisons: list[Comparison] = []
    with tempfile.TemporaryDirectory(prefix="dl-peers-") as cache:
        for name in options.networks or NETWORKS:
            comparisons.append(
                compare(
                    name,
                    frameworks,
                    options.rounds or ROUNDS,
                    options.seconds,
                    Path(cache),
                    lambda line: print(line, flush=True),
                    with_unjitted=options.with_unjitted,
                )
            )
    print(f"\n{table(comparisons)}\n\n{settings(comparisons)}")
    found = [
        {**one.to_json(), "ratios": {name: list(ratio) for name, ratio in ratios(one).items()}}
        for one in comparisons
    ]
    _save(options, {"networks": found}, plot_ratios(comparisons) if options.plot else None)
    if refused := [f"{one.network}: {label}" for one in comparisons for label in one.refused]:
        raise SystemExit(f"not the same network: {'; '.join(refused)}")


def _commands(options: argparse.Namespace, frameworks: Sequence[str]) -> None:
    found = time_commands(frameworks, options.rounds or COMMAND_ROUNDS, lambda line: print(line, flush=True))
    print(f"\n{command_table(found)}")
    kept = {label: of for label, of in found.seconds.items() if label not in found.left_out}
    _save(options, {"commands": found.to_json()}, plot_commands(kept) if options.plot else None)


def _save(options: argparse.Namespace, found: Mapping[str, Any], figure: "Figure | None") -> None:
    if options.json is not None:
        facts = {"machine": machine(), "software": software(), "peers": _versions(), "cores": num_cores()}
        how = {"rounds": options.rounds, "seconds": options.seconds}
        save_text(json.dumps({**facts, **how, **found}, indent=1), options.json)
    if figure is not None:
        kind = options.plot.suffix[1:]
        save(lambda file: figure.savefig(file, format=kind, dpi=150), options.plot)


def _versions() -> list[str]:
    """Returns the name and version of each framework."""
    names = ["jax", *(name for framework in PEERS for name in PEERS[framework])]
    made = []
    for name in names:
        for distribution in (name, f"{name}-cpu"):
            try:
                made.append(f"{name} {importlib.metadata.version(distribution)}")
                break
            except importlib.metadata.PackageNotFoundError:
                continue
    return [f"{OURS} {importlib.metadata.version('dl')}", *made]


if __name__ == "__main__":
    run_as_command(main)
