"""`python -m dl learning-curve EXPERIMENT`: the error over the number of training examples.

Every run has the experiment's own number of steps. The rows of a smaller part are among those of a larger
one, always the same; the splits to evaluate on stay whole.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dl.command import code_of, make_mesh_of, module_name
from dl.console import Console
from dl.data.folds import take
from dl.data.order import random_order
from dl.data.splits import ChangedSplits, Splits
from dl.errors import UserError
from dl.evaluation.intervals import t_interval
from dl.experiment import Experiment
from dl.log import finite
from dl.loop import train
from dl.members import Members
from dl.options import PositiveInt, parse
from dl.power_law import PowerLaw, bootstrap, fit
from dl.run import Run, as_recorded, this_command, write_json
from dl.selection import FINAL_SPLIT
from dl.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROG = "python -m dl learning-curve"
_PART_KEY = (2, 2**63)  # apart from the keys of epochs, (seed, epoch), of splits and of folds


@dataclasses.dataclass(frozen=True)
class CurveOptions:
    """Which parts of the data, and how often.

    Attributes:
      fractions: of the training split, with commas between; three at least.
      num_seeds: runs with each part, in one program, from --seed on; two at least.
      workdir: the folder of all runs; the same folder again goes on. None: runs/NAME-curve-TIME.
      data_dir: the folder of prepared data sets. None: $TFDS_DATA_DIR, else ~/tensorflow_datasets.
      mesh: device axes, such as data=8. None: all devices on data.
    """

    fractions: str = "0.05,0.1,0.2,0.5,1"
    num_seeds: PositiveInt = 3
    workdir: Path | None = None
    data_dir: Path | None = None
    mesh: str | None = None


def part_of(data: Splits, fraction: float) -> ChangedSplits:
    """Returns splits that train on the first rows of one fixed random order."""
    size = len(data.train)
    order = random_order(size, *_PART_KEY)
    rows = np.sort(order[: max(round(fraction * size), 1)])
    return ChangedSplits(data, {"train": take(data.train, rows)})


def learning_curve(experiment_fn: Callable[..., Experiment], argv: Sequence[str]) -> tuple[Table, str]:
    """Trains with more and more of the data, and fits a power law to the error.

    The interval says how far the runs scatter, not whether the law goes on beyond them.

    Returns:
      The table of sizes, and a line with the law and its bootstrap interval.

    Raises:
      UserError: a mistake in the arguments or in a run, or the experiment measures no accuracy.
    """
    name = module_name(experiment_fn)
    options, how = parse(experiment_fn, CurveOptions, argv, f"{PROG} {name}", _about())
    fractions = _fractions(how.fractions)
    if how.num_seeds < 2:
        raise UserError(f"--num-seeds {how.num_seeds} tells nothing of the spread; it must be at least 2")
    if how.data_dir is not None:
        os.environ["TFDS_DATA_DIR"] = str(how.data_dir)
    folder = how.workdir or Path("runs") / f"{name.rpartition('.')[2]}-curve-{time.strftime('%Y%m%d-%H%M%S')}"
    mesh, experiment = make_mesh_of(how.mesh), experiment_fn(**options)
    split = FINAL_SPLIT if FINAL_SPLIT in experiment.data.evaluations else "validation"
    resume = this_command("dl", folder)
    note = ""
    if notice := experiment.data.notice:
        Console().box("NOT THE DATA YOU MAY EXPECT", notice)
        note = f" NOTE: {notice.splitlines()[0]}"
    seeds = tuple(range(experiment.seed, experiment.seed + how.num_seeds))
    sizes, errors = [], []
    for fraction in fractions:
        part = dataclasses.replace(experiment, data=part_of(experiment.data, fraction))
        recorded = {**options, "num_seeds": how.num_seeds, "fraction": fraction}
        run = Run(folder / f"fraction-{fraction:g}", name, recorded, code_of(experiment_fn), resume)
        result = train(part, run, mesh, members=Members(seeds), console=Console(is_quiet=True))
        if "accuracy" not in result["metrics"].get(split, {}):
            raise UserError(f"{name} measures no accuracy on {split}; a learning curve needs one")
        sizes.append(len(part.data.train))
        errors.append([1 - member["metrics"][split]["accuracy"] for member in result["members"]])
        print(f"{sizes[-1]:,} examples: {split} accuracy {1 - np.mean(errors[-1]):.4f}", flush=True)
    errors_SR = np.array(errors)
    law, laws = fit(sizes, errors_SR.mean(1)), bootstrap(sizes, errors_SR)
    intervals = [t_interval(1 - row) for row in errors_SR]
    summary = {
        "experiment": name,
        "options": as_recorded(options),
        "split": split,
        "law": law._asdict(),
        "sizes": sizes,
    }
    write_json(folder / "curve.json", finite({**summary, "errors": errors}))
    plot(sizes, errors_SR, law, laws, split).savefig(folder / "curve.png", dpi=120)
    rows = [
        [f"{size:,}", f"{mean:.4f}", f"{low:.4f}..{high:.4f}", f"{1 - float(law(size)):.4f}"]
        for size, (mean, low, high) in zip(sizes, intervals, strict=True)
    ]
    table = Table(f"{split} accuracy by training examples", ["examples", "mean", "95 %", "law"], rows)
    double = 2 * sizes[-1]
    low, high = np.quantile([1 - law(double) for law in laws], (0.025, 0.975))
    figure = f"{split}_accuracy_with_twice_the_data={1 - float(law(double)):.4f} ci95={low:.4f}..{high:.4f}"
    return table, (
        f"error = {law.scale:.3g} n^-{law.exponent:.3g} + {law.floor:.3g}\n"
        f"{figure} examples={double} curve={folder}{note}"
    )


def plot(
    sizes: Sequence[int], errors_SR: np.ndarray, law: PowerLaw, laws: Sequence[PowerLaw], split: str
) -> "Figure":
    """Returns the error over the number of examples: a point for each run, the law with its 95 % band."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    places = np.geomspace(sizes[0], 4 * sizes[-1], 100)
    low, high = np.quantile([law(places) for law in laws], (0.025, 0.975), axis=0)
    axes.fill_between(places, low, high, alpha=0.2, label="95 % of resampled runs")
    axes.plot(places, law(places), label=f"{law.scale:.3g} n$^{{-{law.exponent:.3g}}}$ + {law.floor:.3g}")
    axes.plot(np.repeat(sizes, errors_SR.shape[1]), errors_SR.ravel(), "k.", label="a run")
    axes.set(xscale="log", yscale="log", xlabel="training examples", ylabel=f"{split} error")
    axes.legend()
    return figure


def _about() -> str:
    return " ".join((learning_curve.__doc__ or "").partition("Returns:")[0].split())


def _fractions(text: str) -> list[float]:
    try:
        fractions = sorted({float(part) for part in text.split(",")})
    except ValueError:
        raise UserError(
            f"--fractions {text!r} is not understood; write numbers with commas between"
        ) from None
    if len(fractions) < 3 or not 0 < fractions[0] <= fractions[-1] <= 1:
        raise UserError(
            f"--fractions {text!r} must be three or more different numbers, above 0 and at most 1"
        )
    return fractions
