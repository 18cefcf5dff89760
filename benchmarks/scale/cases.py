"""The cases of the benchmark of scale: real runs that are small in everything but the one size that grows.

Each stage of a case is a function of the size and the folder of the case, and runs in a process of its own.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dl import optimizers, task
from dl.data import ArraySource, ArraySplits
from dl.errors import UserError
from dl.experiment import Experiment
from dl.models.mlp import MLP
from dl.report import write_report
from dl.runs.console import Console
from dl.studies.compare import compare_runs
from dl.studies.sweep import sweep
from dl.studies.sweep_tables import plot, table_of
from dl.training.loop import train

NUM_TESTED = 20_000  # test examples of the case of classes

Stage = Callable[[int, Path], None]


class Case(NamedTuple):
    """One thing that grows.

    Attributes:
      sizes: a small and a large size, whose ratio is that of the times if the time is linear.
      stages: the function of each stage, in order.
      files: patterns of the files whose bytes are stated, below the folder of the case.
    """

    sizes: tuple[int, int]
    stages: Mapping[str, Stage]
    files: tuple[str, ...]


def train_classes(size: int, folder: Path) -> None:
    """Trains a classifier of `size` classes for a few steps."""
    _train(_experiment(num_classes=size, num_examples=NUM_TESTED), folder / "run")


def train_examples(size: int, folder: Path) -> None:
    """Trains a classifier on `size` images as large as those of MNIST, and evaluates it on as many."""
    _train(_experiment(num_classes=10, num_examples=size, num_pixels=28), folder / "run")


def train_steps(size: int, folder: Path) -> None:
    """Trains a classifier for `size` steps, each with a line in metrics.jsonl."""
    made = _experiment(num_classes=10, num_examples=1_000, num_steps=size)
    _train(made, folder / "run", log_every=1)


def train_copies(size: int, folder: Path) -> None:
    """Makes the folders of `size` runs: two that differ, and copies of the second."""
    for seed in (0, 1):
        _train(_experiment(num_classes=10, num_examples=10_000, seed=seed), folder / f"run-{seed}")
    for number in range(2, size):
        shutil.copytree(folder / "run-1", folder / f"run-{number}")


def report(size: int, folder: Path) -> None:
    """Writes the report of a run from its files."""
    write_report(folder / "run", folder / "run" / "report.html", None)


def compare(size: int, folder: Path) -> None:
    """Compares `size` runs, as `python -m dl compare --markdown` does."""
    found = compare_runs(*(folder / f"run-{number}" for number in range(size)))
    text = "\n\n".join([*(table.to_markdown() for table in found.tables), *found.lines])
    (folder / "compare.md").write_text(text, encoding="utf-8")


def search(size: int, folder: Path) -> None:
    """Sweeps over `size` points, all of which but one are refused by the experiment at once."""
    points = [float(point) for point in range(size)]
    console = Console(is_quiet=True)
    sweep(_refusing, {"point": points}, method="grid", folder=folder / "sweep", console=console)


def draw(size: int, folder: Path) -> None:
    """Writes the table and the plot of a sweep whose trials all have a value."""
    trials = json.loads((folder / "sweep" / "sweep.json").read_text(encoding="utf-8"))["trials"]
    rows = [{**trial, "value": float(trial["trial"])} for trial in trials]
    (folder / "table.md").write_text(table_of(rows, "loss").to_markdown(), encoding="utf-8")
    plot(rows, {}, "loss", -1.0).savefig(folder / "plot.png")


CASES = {
    "classes": Case(
        (1_000, 10_000),
        {"train": train_classes, "report": report},
        ("run/predictions.npz", "run/report.html"),
    ),
    "examples": Case(
        (100_000, 1_000_000),
        {"train": train_examples, "report": report},
        ("run/predictions.npz", "run/report.html"),
    ),
    "metric rows": Case(
        (1_000, 10_000), {"train": train_steps, "report": report}, ("run/metrics.jsonl", "run/report.html")
    ),
    "runs": Case((10, 50), {"train": train_copies, "compare": compare}, ("compare.md",)),
    "trials": Case((100, 1_000), {"sweep": search, "draw": draw}, ("sweep/sweep.json", "table.md")),
}


def _experiment(
    num_classes: int, num_examples: int, num_steps: int = 10, seed: int = 0, num_pixels: int = 4
) -> Experiment:
    """Returns a linear classifier of random images with `num_pixels` on each side."""
    random = np.random.default_rng(0)

    def source(size: int) -> ArraySource:
        images = random.integers(0, 256, (size, num_pixels, num_pixels, 1), np.uint8)
        return ArraySource({"image": images, "label": random.integers(0, num_classes, size, np.int32)})

    return Experiment(
        data=ArraySplits("noise", train=source(num_examples), evaluations={"test": source(num_examples)}),
        task=task.classification(MLP(hidden=(), num_classes=num_classes)),
        tx=optimizers.sgd(0.1),
        num_steps=num_steps,
        batch_size=96,
        eval_batch_size=960,
        seed=seed,
    )


def _train(experiment: Experiment, folder: Path, log_every: int = 10) -> None:
    train(experiment, folder, log_every=log_every, with_baseline=False, console=Console(is_quiet=True))


def _refusing(point: float = 0.0) -> Experiment:
    """Returns an experiment for the point 0, and refuses all others."""
    if point:
        raise UserError(f"point={point} is not 0")
    made = _experiment(num_classes=2, num_examples=100)
    data = ArraySplits("noise", train=made.data.train, evaluations={"validation": made.data.train})
    return Experiment(data=data, task=made.task, tx=made.tx, num_steps=1, batch_size=96)
