"""`python -m dl learning-curve EXPERIMENT`: the error over the number of training examples, or of parameters.

Every run has the experiment's own number of steps. The rows of a smaller part are among those of a larger
one, always the same; the splits to evaluate on stay whole. Models of several sizes train on the same data.
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
from dl.curve_plan import plan_models, plan_parts
from dl.errors import UserError
from dl.evaluation.intervals import t_interval
from dl.experiment import Experiment
from dl.log import finite
from dl.loop import train
from dl.members import Members
from dl.options import PositiveInt, named, parse
from dl.power_law import PowerLaw, bootstrap, fit
from dl.run import Run, as_recorded, read_json, this_command, write_json
from dl.selection import FINAL_SPLIT
from dl.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROG = "python -m dl learning-curve"


@dataclasses.dataclass(frozen=True)
class CurveOptions:
    """Which parts of the data or which models, and how often.

    Attributes:
      fractions: of the training split, with commas between; three at least.
      over: the curve over trained parameters instead: the option of the experiment that changes the size of
        the model, with three values at least, as hidden=16,32,64 or hidden=log:16:256:5.
      num_seeds: runs of each size, in one program, from --seed on; two at least.
      workdir: the folder of all runs; the same folder again goes on. None: runs/NAME-curve-TIME.
      data_dir: the folder of prepared data sets. None: $TFDS_DATA_DIR, else ~/tensorflow_datasets.
      mesh: device axes, such as data=8. None: all devices on data.
    """

    fractions: str = "0.05,0.1,0.2,0.5,1"
    over: str | None = None
    num_seeds: PositiveInt = 3
    workdir: Path | None = None
    data_dir: Path | None = None
    mesh: str | None = None


def learning_curve(experiment_fn: Callable[..., Experiment], argv: Sequence[str]) -> tuple[Table, str]:
    """Trains with more and more of the data, or larger and larger models, and fits a power law to the error.

    The interval says how far the runs scatter, not whether the law goes on beyond them.

    Returns:
      The table of sizes, and a line with the law and its bootstrap interval.

    Raises:
      UserError: a mistake in the arguments or in a run, or the experiment measures no accuracy.
    """
    name = module_name(experiment_fn)
    options, how = parse(experiment_fn, CurveOptions, argv, f"{PROG} {name}", _about())
    _check_one_curve(how, argv)
    if how.num_seeds < 2:
        raise UserError(f"--num-seeds {how.num_seeds} tells nothing of the spread; it must be at least 2")
    if how.data_dir is not None:
        os.environ["TFDS_DATA_DIR"] = str(how.data_dir)
    folder = how.workdir or Path("runs") / f"{name.rpartition('.')[2]}-curve-{time.strftime('%Y%m%d-%H%M%S')}"
    mesh = make_mesh_of(how.mesh)
    if how.over is None:
        plan = plan_parts(experiment_fn, options, how.fractions)
    else:
        plan = plan_models(experiment_fn, options, how.over)
    _check_folder(folder, plan.varied)
    experiment, axis = plan.experiment, plan.axis
    split = FINAL_SPLIT if FINAL_SPLIT in experiment.data.evaluations else "validation"
    resume = this_command("dl", folder)
    note = ""
    if notice := experiment.data.notice:
        Console().box("NOT THE DATA YOU MAY EXPECT", notice)
        note = f" NOTE: {notice.splitlines()[0]}"
    seeds = tuple(range(experiment.seed, experiment.seed + how.num_seeds))
    values, sizes, errors = [], [], []
    for point in plan.points:
        place = folder / f"{plan.varied}-{point.value.replace('/', '_')}"
        recorded = {**point.options, "num_seeds": how.num_seeds}
        run = Run(place, name, recorded, code_of(experiment_fn), resume)
        result = train(point.experiment, run, mesh, members=Members(seeds), console=Console(is_quiet=True))
        if "accuracy" not in result["metrics"].get(split, {}):
            raise UserError(f"{name} measures no accuracy on {split}; a learning curve needs one")
        values.append(point.value)
        sizes.append(point.size)
        errors.append([1 - member["metrics"][split]["accuracy"] for member in result["members"]])
        print(
            f"{plan.varied}={point.value} ({point.size:,} {axis.unit}): {split} accuracy "
            f"{1 - np.mean(errors[-1]):.4f}",
            flush=True,
        )
    errors_SR = np.array(errors)
    law, laws = fit(sizes, errors_SR.mean(1)), bootstrap(sizes, errors_SR)
    intervals = [t_interval(1 - row) for row in errors_SR]
    summary = {
        "experiment": name,
        "options": as_recorded({key: value for key, value in options.items() if key != plan.varied}),
        "split": split,
        "law": law._asdict(),
        "varied": plan.varied,
        "values": values,
        "unit": axis.unit,
        "sizes": sizes,
        "errors": errors,
    }
    write_json(folder / "curve.json", finite(summary))
    plot(sizes, errors_SR, law, laws, axis.label, f"{split} error").savefig(folder / "curve.png", dpi=120)
    rows = [
        [value, f"{size:,}", f"{mean:.4f}", f"{low:.4f}..{high:.4f}", f"{1 - float(law(size)):.4f}"]
        for value, size, (mean, low, high) in zip(values, sizes, intervals, strict=True)
    ]
    header = [plan.varied, axis.unit, "mean", "95 %", "law"]
    double = 2 * sizes[-1]
    low, high = np.quantile([1 - law(double) for law in laws], (0.025, 0.975))
    figure = f"{split}_accuracy_with_twice_the_{axis.whole}={1 - float(law(double)):.4f}"
    return Table(f"{split} accuracy by {axis.label}", header, rows), (
        f"error = {law.scale:.3g} n^-{law.exponent:.3g} + {law.floor:.3g}\n"
        f"{figure} ci95={low:.4f}..{high:.4f} {axis.unit}={double} curve={folder}{note}"
    )


def plot(
    sizes: Sequence[int],
    errors_SR: np.ndarray,
    law: PowerLaw,
    laws: Sequence[PowerLaw],
    xlabel: str,
    ylabel: str,
) -> "Figure":
    """Returns the error over the sizes: a point for each run, the law with its 95 % band."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    places = np.geomspace(sizes[0], 4 * sizes[-1], 100)
    low, high = np.quantile([law(places) for law in laws], (0.025, 0.975), axis=0)
    axes.fill_between(places, low, high, alpha=0.2, label="95 % of resampled runs")
    axes.plot(places, law(places), label=f"{law.scale:.3g} n$^{{-{law.exponent:.3g}}}$ + {law.floor:.3g}")
    axes.plot(np.repeat(sizes, errors_SR.shape[1]), errors_SR.ravel(), "k.", label="a run")
    axes.set(xscale="log", yscale="log", xlabel=xlabel, ylabel=ylabel)
    axes.legend()
    return figure


def _about() -> str:
    return " ".join((learning_curve.__doc__ or "").partition("Returns:")[0].split())


def _check_one_curve(how: CurveOptions, argv: Sequence[str]) -> None:
    if how.over is None:
        return
    if how.fractions != CurveOptions.fractions:
        raise UserError("--fractions and --over ask for two curves; choose one")
    if twice := named([f"--{how.over}"]) & named(argv):
        raise UserError(f"{twice.pop()} takes the values of --over and is given another too; choose one")


def _check_folder(folder: Path, varied: str) -> None:
    """Raises UserError if the folder holds a curve over something else, which would be overwritten."""
    path = folder / "curve.json"
    if path.exists() and (there := read_json(path).get("varied", "fraction")) != varied:
        raise UserError(f"workdir={folder} holds a curve over {there}, not {varied}; use another --workdir")
