"""The comparison of one network: which variants are fastest, then rounds of the best of each framework."""

import contextlib
import dataclasses
import os
import statistics
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.contestants import OURS, Contestant, variants
from benchmarks.peers.networks import NETWORKS
from benchmarks.peers.process import Failed, Process, num_cores, write_reference
from benchmarks.peers.reference import Different, Reference


@dataclasses.dataclass
class Comparison:
    """What was measured on one network.

    Attributes:
      network: name of the network.
      num_parameters: its number of parameters.
      rates: examples per second of each contestant in each round.
      peak_bytes: largest memory of each contestant's process.
      framework_of: framework of each contestant.
      qualifying: examples per second of each variant in one turn before the rounds.
      left_out: the reason for each contestant that was not measured.
      refused: the contestants whose network was not the same.
    """

    network: str
    num_parameters: int = 0
    rates: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    peak_bytes: dict[str, int] = dataclasses.field(default_factory=dict)
    framework_of: dict[str, str] = dataclasses.field(default_factory=dict)
    qualifying: dict[str, float] = dataclasses.field(default_factory=dict)
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)
    refused: list[str] = dataclasses.field(default_factory=list)

    def best_of(self, framework: str) -> str | None:
        """Returns the contestant of a framework with the largest median; `None` if there is none."""
        of = [name for name, of in self.framework_of.items() if of == framework and self.rates.get(name)]
        return max(of, key=lambda name: statistics.median(self.rates[name]), default=None)

    def to_json(self) -> dict[str, Any]:
        """Returns everything as JSON."""
        return dataclasses.asdict(self)


def compare(
    name: str,
    frameworks: Collection[str],
    num_rounds: int,
    seconds: float,
    cache: Path,
    tell: Callable[[str], None],
    *,
    with_unjitted: bool = False,
) -> Comparison:
    """Measures a network in `dl` and in other frameworks.

    Args:
      name: name of the network.
      frameworks: the other frameworks.
      num_rounds: number of rounds. In each one every contestant has one turn.
      seconds: time of a turn, which is rounded up to whole epochs.
      cache: folder of what compilers store.
      tell: prints a line of progress.
      with_unjitted: see `contestants.variants`.
    """
    found = Comparison(name)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        errors = stack.enter_context((folder / "errors").open("wb"))
        reference = folder / "reference.npz"

        def environment(contestant: Contestant) -> dict[str, str]:
            return contestant.environment(os.environ, num_cores(), str(cache))

        def start(contestant: Contestant) -> Process | None:
            """Returns the process of a contestant; `None` if it cannot be measured."""
            label = str(contestant)
            try:
                process = Process(contestant, name, reference, environment(contestant), errors)
            except (Different, Failed) as error:
                found.left_out[label] = str(error)
                found.refused += [label] * isinstance(error, Different)
                tell(f"  {label}: {'not the same network, ' * isinstance(error, Different)}{error}")
                return None
            found.framework_of[label] = contestant.framework
            return process

        ours = Contestant(OURS, "")
        tell(f"{name}: the first steps of {OURS}")
        try:
            write_reference(name, reference, environment(ours), errors)
        except Failed as error:
            found.left_out[OURS] = str(error)
            tell(f"  {OURS}: {error}")
            return found
        found.num_parameters = Reference.load(reference).num_parameters
        processes: dict[str, Process] = {}

        def enter(contestant: Contestant, process: Process) -> None:
            processes[str(contestant)] = stack.enter_context(process)

        if (process := start(ours)) is None:
            return found
        enter(ours, process)
        for framework in frameworks:
            best = _qualify(
                variants(NETWORKS[name], framework, with_unjitted=with_unjitted), start, seconds, found, tell
            )
            if best is None:
                continue
            enter(*best)
            plain = dataclasses.replace(best[0], keeps_memory=False)
            if (process := start(plain)) is not None:
                enter(plain, process)
        _rounds(processes, num_rounds, seconds, found, tell)
    return found


def _qualify(
    contestants: Sequence[Contestant],
    start: Callable[[Contestant], Process | None],
    seconds: float,
    found: Comparison,
    tell: Callable[[str], None],
) -> tuple[Contestant, Process] | None:
    """Gives each variant one turn, and returns the fastest with its process; the others are ended."""
    best: tuple[Contestant, Process] | None = None
    best_rate = 0.0
    for contestant in contestants:
        process = start(contestant)
        if process is None:
            continue
        try:
            rate = process.turn(seconds).rate
        except Failed as error:
            process.close()
            found.left_out[str(contestant)] = str(error)
            continue
        found.qualifying[str(contestant)] = rate
        tell(f"  {contestant}: {rate:,.0f} examples/s, ready after {process.ready_seconds:.0f} s")
        if rate > best_rate:
            if best is not None:
                best[1].close()
            best, best_rate = (contestant, process), rate
        else:
            process.close()
    return best


def _rounds(
    processes: Mapping[str, Process],
    num_rounds: int,
    seconds: float,
    found: Comparison,
    tell: Callable[[str], None],
) -> None:
    """Gives each process one turn in every round; another one is first in each."""
    labels = list(processes)
    found.rates = {label: [] for label in labels}
    for number in range(num_rounds):
        shift = number % len(labels)
        for label in labels[shift:] + labels[:shift]:
            if label in found.left_out:
                continue
            try:
                turn = processes[label].turn(seconds)
            except Failed as error:
                found.left_out[label] = str(error)
                tell(f"  {label}: {error}")
                continue
            found.rates[label].append(turn.rate)
            found.peak_bytes[label] = turn.peak_bytes
    found.rates = {label: rates for label, rates in found.rates.items() if label not in found.left_out}
    for label, rates in found.rates.items():
        tell(f"  {label}: {statistics.median(rates):,.0f} examples/s, median of {num_rounds} rounds")
