"""Compares runs on other numbers of processes and devices, also where a killed run resumes on others.

    python -m benchmarks.elastic [--short]

1. Equal: runs on 1, 2 and 4 processes of two devices each have the losses of one process to 1e-5 at every
   step, and with `--reduction exact` its parameters, bit for bit.
2. Resumed: a run is ended by SIGTERM or by SIGKILL of a random process after a random step, and resumes on
   another number of processes and devices. The parameters that its first step starts from must be those of
   the checkpoint, bit for bit. Every step must have the examples, the loss and the parameters of an
   undisturbed run, also the steps whose rows the kill has thrown away. The final digests must be equal.

Exits with status 1 if anything differs. `benchmarks.elastic.cost` measures what `--reduction exact` costs.
"""

import itertools
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import dl
from benchmarks.elastic.recorded import (
    BATCH_SIZE,
    NUM_EXAMPLES,
    checksum,
    checksum_of,
    examples_of,
    experiment,
)
from benchmarks.processes import digest_of, send, start
from dl.runs.log import read_metrics
from dl.training.processes import LOST

TOLERANCE = 1e-5
NUM_STEPS = 80
STEPS_PER_EPOCH = -(-NUM_EXAMPLES // BATCH_SIZE)
RECORDED = ["-m", "benchmarks.elastic.recorded", "--log-every", "1"]
PERCEPTRON = ["-m", "experiments.mnist_mlp", "--dataset", "digits", "--num-epochs", "4", "--log-every", "1"]
EXACT = ["--reduction", "exact"]
SAVING = ["--num-steps", str(NUM_STEPS), "--save-every", "0.5", *EXACT]
MESHES = {1: ["data=1"], 2: ["data=2", "fsdp=2"], 4: ["data=4", "fsdp=4", "data=2,fsdp=2"]}
MESHES[8] = ["fsdp=8", "data=8", "data=4,fsdp=2"]


class Layout(NamedTuple):
    """Where a run is trained: `devices` of each process."""

    processes: int
    devices: int
    mesh: str

    def __str__(self) -> str:
        return f"{self.processes} x {self.devices}, {self.mesh}"


def launch(folder: Path, run: Sequence[str], layout: Layout) -> subprocess.Popen[str]:
    """Starts or resumes a run."""
    return start(folder, [*run, "--mesh", layout.mesh], layout.processes, layout.devices)


def finish(folder: Path, run: Sequence[str], layout: Layout) -> str:
    """Trains or resumes a run to its end; returns its output.

    Raises:
      RuntimeError: it failed.
    """
    process = launch(folder, run, layout)
    output, _ = process.communicate(timeout=600)
    if process.returncode or digest_of(folder) is None:
        raise RuntimeError(f"the run ended with status {process.returncode}: {output[-1500:]}")
    return output


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """Returns the rows of the log that are of one step each."""
    path = folder / "metrics.jsonl"
    return [row for row in read_metrics(path) if row["kind"] == "train"] if path.exists() else []


def differences(rows: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns in which steps, examples, parameters or losses rows differ from those of an undisturbed run."""
    found = [
        f"row {number} is that of step {row['step']}"
        for number, row in enumerate(rows, start=1)
        if row["step"] != number
    ]
    for row, other in zip(rows, others, strict=False):
        found += [
            f"step {row['step']} has other {name}"
            for name, read in (("examples", examples_of), ("parameters", checksum_of), ("loss", _loss))
            if read(row) != read(other)
        ]
    return found[:5]


def _loss(row: Mapping[str, Any]) -> float:
    return float(row["loss"])


def lost_or_repeated(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the epochs whose steps do not have every example exactly once."""
    found = []
    for first in range(0, len(rows) - STEPS_PER_EPOCH + 1, STEPS_PER_EPOCH):
        epoch = [number for row in rows[first : first + STEPS_PER_EPOCH] for number in examples_of(row)]
        if sorted(epoch) != list(range(NUM_EXAMPLES)):
            found.append(f"the epoch from step {first + 1} does not have every example once")
    return found


def compare(place: Path, is_short: bool) -> list[str]:
    """Compares undisturbed runs; prints a table in Markdown and returns what went wrong."""
    one, two, four = (Layout(count, 2, f"data={2 * count}") for count in (1, 2, 4))
    split = [Layout(2, 2, "data=2,fsdp=2"), Layout(4, 2, "fsdp=8")]
    others = [split[0]] if is_short else [two, four, *split]
    failures = []
    print(
        "| run | processes x devices | largest difference of a loss | digest with exact |\n|---|---|---:|---|"
    )
    for name, run in (("perceptron", PERCEPTRON), ("recorded", [*RECORDED, "--num-steps", "40"])):
        losses, digest = [], None
        for layout in [one, *others]:
            folders = place / f"{name}-{layout}-fast", place / f"{name}-{layout}-exact"
            for folder, options in zip(folders, ([], EXACT), strict=True):
                finish(folder, [*run, *options], layout)
            found = np.array([row["loss"] for row in rows_of(folders[0])])
            if digest is None:
                losses, digest = found, digest_of(folders[1])
                continue
            largest = float(np.abs(found - losses).max()) if len(found) == len(losses) else float("inf")
            is_equal = digest_of(folders[1]) == digest
            print(f"| {name} | {layout} | {largest:.1e} | {'equal' if is_equal else 'other'} |", flush=True)
            if largest > TOLERANCE or not is_equal:
                failures.append(f"{name} on {layout} is not the run on {one}")
    return failures


def stop(folder: Path, layout: Layout, how: signal.Signals, draw: random.Random) -> str | None:
    """Starts a run and ends it after a random step; returns what went wrong, `None` if it ended before."""
    process = launch(folder, [*RECORDED, *SAVING], layout)
    last = draw.randrange(NUM_STEPS // 8, NUM_STEPS * 7 // 8)
    checkpoints = folder / "checkpoints"
    while process.poll() is None and not (len(rows_of(folder)) >= last and _saved(checkpoints)):
        time.sleep(0.01)
    number = draw.randrange(layout.processes)
    is_sent = send(process, how, number)
    output, _ = process.communicate(timeout=120)
    if not is_sent or digest_of(folder) is not None:
        return None
    expected = 143 if how == signal.SIGTERM else LOST if layout.processes > 1 else 128 + how
    if process.returncode != expected:
        return f"status {process.returncode} in place of {expected}: {output[-1000:]}"
    return ""


def _saved(checkpoints: Path) -> list[int]:
    names = [path.name for path in checkpoints.iterdir()] if checkpoints.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal())


def resume(
    folder: Path, before: Layout, after: Layout, undisturbed: Path, how: signal.Signals, draw: random.Random
) -> tuple[int, list[str]]:
    """Ends a run on one layout and resumes it on another; returns the step, and what went wrong.

    Raises:
      RuntimeError: the run failed, or always ended before it could be disturbed.
    """
    for attempt in itertools.count():
        place = folder / str(attempt)
        trouble = stop(place, before, how, draw)
        if trouble is not None:
            break
        if attempt == 3:
            raise RuntimeError("the run always ended before it could be disturbed")
    expected, found = rows_of(undisturbed), [trouble] if trouble else []
    found += differences(rows_of(place), expected)
    step = _saved(place / "checkpoints")[-1]
    saved = checksum(jax.device_get(dl.load_run(place, experiment).params))
    output = finish(place, [*RECORDED, *SAVING], after)
    rows = rows_of(place)
    if f"resuming at step {step:,} of" not in output:
        found.append(f"it did not resume at step {step}, which was saved")
    if step < NUM_STEPS and checksum_of(rows[step]) != saved:
        found.append(f"step {step + 1} did not start from the saved parameters")
    if len(rows) != NUM_STEPS:
        found.append(f"the log has {len(rows)} steps in place of {NUM_STEPS}")
    found += differences(rows, expected) + lost_or_repeated(rows)
    if digest_of(place) != digest_of(undisturbed):
        found.append("the final parameters are others")
    starts = json.loads((place / "run.json").read_text(encoding="utf-8"))["starts"]
    if [one["processes"] for one in starts] != [before.processes, after.processes]:
        found.append(f"run.json names other starts: {starts}")
    return step, found


def cases(is_short: bool) -> list[tuple[Layout, Layout]]:
    """Returns pairs of different layouts, before and after a disturbance."""
    counts = [(1, 1), (1, 2), (2, 1), (2, 2), (4, 1), (4, 2)]
    pairs = [(counts[k], counts[(k + shift) % 6]) for shift in range(1, 5) for k in range(6)]
    if is_short:
        pairs = [((2, 2), (1, 1)), ((1, 2), (2, 1)), ((2, 1), (4, 1))]
    found = []
    for number, pair in enumerate(pairs):
        meshes = [MESHES[count * each] for count, each in pair]
        names = [mesh[(number // 3 + place) % len(mesh)] for place, mesh in enumerate(meshes)]
        before, after = (Layout(*count, name) for count, name in zip(pair, names, strict=True))
        found.append((before, after))
    return found


def main(is_short: bool) -> int:
    """Runs the campaign and prints its tables in Markdown; returns the exit status."""
    draw, began = random.Random(0), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="dl-elastic-") as name:
        failures = compare(Path(name), is_short)
        undisturbed = Path(name) / "undisturbed"
        finish(undisturbed, [*RECORDED, *SAVING], Layout(1, 1, "data=1"))
        failures += lost_or_repeated(rows_of(undisturbed))
        print("\n| case | before | ended by | saved at step | after | result |\n|---:|---|---|---:|---|---|")
        for number, (before, after) in enumerate(cases(is_short), start=1):
            how = signal.SIGKILL if number % 2 else signal.SIGTERM
            folder = Path(name) / str(number)
            try:
                step, found = resume(folder, before, after, undisturbed, how, draw)
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                step, found = 0, [str(error)]
            said = "equal" if not found else "other"
            print(f"| {number} | {before} | {how.name} | {step} | {after} | {said} |", flush=True)
            failures += [f"case {number}: {one}" for one in found]
    print("\n".join([f"\n{time.monotonic() - began:.0f} s, {len(failures)} failures", *failures]))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main("--short" in sys.argv[1:]))
