"""`python -m dl learning-curve EXPERIMENT`: the error over the number of training examples, or of parameters.

Every run has the experiment's own number of steps and batch size, so that a smaller part is passed more
often. The rows of a smaller part are among those of a larger one, always the same; a part larger than a batch
is cut to whole batches (`curve_plan.part_size`). The splits to evaluate on stay whole. Models of several
sizes train on the same data.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from jax.sharding import Mesh

from dl.cli.options import named, parse
from dl.errors import UserError
from dl.evaluation.intervals import Interval
from dl.experiment import Experiment
from dl.metrics import Direction
from dl.option_types import PositiveInt
from dl.runs.console import Console
from dl.runs.folder import Run, this_command
from dl.runs.log import finite
from dl.runs.provenance import code_of, legacy_code_of, module_name
from dl.runs.tables import Table
from dl.sharding import make_mesh_of
from dl.stopping import FINAL_SPLIT
from dl.studies.curve_plan import Plan, plan_models, plan_parts
from dl.studies.fingerprint import direction_of, metric_directions
from dl.studies.folder import Kind, Study, open_study, plain, usable
from dl.studies.power_law import PowerLaw, fit, forecast, objection
from dl.training.loop import train
from dl.training.population import Population

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
      metric: what the curve is of, as the test split measures it (without one, validation). Of a metric that
        is best when it is large, such as accuracy, the curve is of 1 - metric. None: accuracy, else loss.
      mode: whether the smallest (min) or the largest value (max) of the metric is best. None: what the metric
        states for itself.
      num_seeds: runs of each size, in one program, from --seed on; two at least.
      workdir: the folder of all runs; the same folder again goes on. None: runs/NAME-curve-TIME.
      data_dir: the folder of prepared data sets. None: $TFDS_DATA_DIR, else ~/tensorflow_datasets.
      mesh: device axes, such as data=8. None: all devices on data.
    """

    fractions: str = "0.05,0.1,0.2,0.5,1"
    over: str | None = None
    metric: str | None = None
    mode: Literal["min", "max"] | None = None
    num_seeds: PositiveInt = 3
    workdir: Path | None = None
    data_dir: Path | None = None
    mesh: str | None = None


class Measure(NamedTuple):
    """What a curve is of.

    Attributes:
      split: that it is measured on.
      metric: its name.
      direction: whether the smallest or the largest value is best.
    """

    split: str
    metric: str
    direction: Direction

    def error(self, value: Any) -> Any:
        """Returns what should fall: the metric itself, or 1 - metric; its own inverse."""
        return value if self.direction == "min" else 1 - value

    @property
    def label(self) -> str:
        if self.direction == "min":
            return f"{self.split} {self.metric}"
        return f"{self.split} error" if self.metric == "accuracy" else f"{self.split} 1 - {self.metric}"


def learning_curve(experiment_fn: Callable[..., Experiment], argv: Sequence[str]) -> tuple[Table, str]:
    """Trains with more and more of the data, or larger and larger models, and fits a power law to the error.

    A law that does not fit is not carried on: then there is a table and no forecast. The interval says how
    far the runs scatter, not whether the law goes on beyond them.

    Returns:
      The table of sizes, and a line with the law and its forecast, or why there is none.

    Raises:
      UserError: a mistake in the arguments or in a run, or the experiment does not measure that metric.
    """
    name = module_name(experiment_fn)
    options, how = parse(experiment_fn, CurveOptions, argv, f"{PROG} {name}", _about())
    _check_one_curve(how, argv)
    if how.num_seeds < 2:
        raise UserError(f"--num-seeds {how.num_seeds} tells nothing of the spread; it must be at least 2")
    if how.data_dir is not None:
        os.environ["TFDS_DATA_DIR"] = str(how.data_dir)
    mesh = make_mesh_of(how.mesh)
    if how.over is None:
        plan = plan_parts(experiment_fn, options, how.fractions)
    else:
        plan = plan_models(experiment_fn, options, how.over)
    measure = _measure(plan.experiment, how)
    if notice := plan.experiment.data.notice:
        Console().box("NOT THE DATA YOU MAY EXPECT", notice)
    header = {
        "experiment": name,
        "varied": plan.varied,
        "options": plain({key: value for key, value in options.items() if key != plan.varied}),
        "unit": plan.axis.unit,
    }
    kind = Kind("learning curve", "curve.json", (f"{plan.varied}-*", "curve.png"))
    with open_study(kind, how.workdir, f"{name.rpartition('.')[2]}-curve") as study:
        if study.resume(header) is None:
            study.write(header)
        measured = _train_all(experiment_fn, plan, measure, how.num_seeds, study, mesh)
        return _conclude(study, header, plan, measure, measured)


class Measured(NamedTuple):
    """What was measured at S sizes.

    Attributes:
      values: of what is varied.
      sizes: in the unit of the axis.
      errors: of R runs of each, shape S × R; NaN where one diverged.
      intervals: of the mean of the metric over the runs, as their results state it.
    """

    values: list[str]
    sizes: list[int]
    errors: np.ndarray
    intervals: list[tuple[float, float]]


def _train_all(
    experiment_fn: Callable[..., Experiment],
    plan: Plan,
    measure: Measure,
    num_seeds: int,
    study: Study,
    mesh: Mesh,
) -> Measured:
    first = plan.experiment.seed
    population = Population(tuple(range(first, first + num_seeds)))
    resume = this_command("dl", study.folder)
    values, sizes, errors, intervals = [], [], [], []
    for point in plan.points:
        place = study.folder / f"{plan.varied}-{point.value.replace('/', '_')}"
        recorded = {**point.options, "num_seeds": num_seeds}
        code, legacy_code = code_of(experiment_fn), legacy_code_of(experiment_fn)
        run = Run(place, module_name(experiment_fn), recorded, code, resume, legacy_code=legacy_code)
        result = train(point.experiment, run, mesh, population=population, console=Console(is_quiet=True))
        figures = [member["metrics"][measure.split][measure.metric] for member in result["members"]]
        values.append(point.value)
        sizes.append(point.size)
        low, high = result["intervals"][measure.split][measure.metric]
        intervals.append((_number(low), _number(high)))
        errors.append([np.nan if figure is None else measure.error(figure) for figure in figures])
        mean = measure.error(np.mean(errors[-1]))
        place_of = f"{plan.varied}={point.value} ({point.size:,} {plan.axis.unit})"
        print(f"{place_of}: {measure.split} {measure.metric} {mean:.4f}", flush=True)
    return Measured(values, sizes, np.array(errors), intervals)


def _number(bound: float | None) -> float:
    return np.nan if bound is None else bound  # as result.json holds what is not a finite number


def _conclude(
    study: Study,
    header: dict[str, Any],
    plan: Plan,
    measure: Measure,
    measured: Measured,
) -> tuple[Table, str]:
    """Stores what was measured, then fits; returns the table and the last lines."""
    values, sizes, errors_SR, intervals = measured
    record = {
        **header,
        "split": measure.split,
        "metric": measure.metric,
        "better": measure.direction,
        "values": values,
        "sizes": sizes,
        "errors": errors_SR.tolist(),
    }
    study.write(finite(record))
    why = _unfit(errors_SR, measure)
    law = None if why else fit(sizes, errors_SR.mean(1))
    if law is not None:
        why = objection(law, sizes, errors_SR)
    double = 2 * sizes[-1]
    ahead = None if why else forecast(sizes, errors_SR, double)
    study.write(
        finite(
            {
                **record,
                "law": None if law is None else law._asdict(),
                "objection": why,
                "forecast": ahead and {"size": double, **ahead._asdict()},
            }
        )
    )
    with usable(study.folder):
        figure = plot(sizes, errors_SR, None if why else law, plan.axis.label, measure.label)
        figure.savefig(study.folder / "curve.png", dpi=120)
    header_row = [plan.varied, plan.axis.unit, "mean", "95 %"]
    rows = []
    for value, size, row, (low, high) in zip(values, sizes, errors_SR, intervals, strict=True):
        rows.append([value, f"{size:,}", f"{measure.error(row.mean()):.4f}", f"{low:.4f}..{high:.4f}"])
    notice = plan.experiment.data.notice
    note = f" NOTE: {notice.splitlines()[0]}" if notice else ""
    ending = f"{plan.axis.unit}={double} curve={study.folder}{note}"
    title = f"{measure.split} {measure.metric} by {plan.axis.label}"
    if ahead is None or law is None:
        return Table(title, header_row, rows), f"no forecast: {why}\ncurve={study.folder}{note}"
    for row, size in zip(rows, sizes, strict=True):
        row.append(f"{measure.error(float(law(size))):.4f}")
    low, high = sorted((measure.error(ahead.low), measure.error(ahead.high)))
    figure_name = f"{measure.split}_{measure.metric}_with_twice_the_{plan.axis.whole}"
    return Table(title, [*header_row, "law"], rows), (
        f"{measure.label} = {law.scale:.3g} n^-{law.exponent:.3g} + {law.floor:.3g}\n"
        f"{figure_name}={measure.error(ahead.estimate):.4f} ci95={low:.4f}..{high:.4f} {ending}"
    )


def _measure(experiment: Experiment, how: CurveOptions) -> Measure:
    """Raises UserError before anything is trained if the experiment does not measure what is asked for."""
    evaluations = experiment.data.evaluations
    split = FINAL_SPLIT if FINAL_SPLIT in evaluations else "validation"
    if split not in evaluations:
        raise UserError("the data have neither a test nor a validation split; a learning curve needs one")
    directions = metric_directions(experiment)
    metric = how.metric or ("accuracy" if "accuracy" in directions else "loss")
    if metric not in directions:
        raise UserError(f"metric={metric!r} is not measured; choose one of {', '.join(directions)}")
    return Measure(split, metric, direction_of(metric, directions, how.mode))


def _unfit(errors_SR: np.ndarray, measure: Measure) -> str | None:
    """Returns why no law can be fitted to the errors; None where one can be."""
    if not np.isfinite(errors_SR).all():
        return f"{measure.label} of a run is not a finite number"
    if errors_SR.min() < 0:
        value = measure.error(errors_SR.min())
        return f"{measure.split} {measure.metric} of a run is {value:.4g}, so that {measure.label} is below 0"
    return None


def plot(
    sizes: Sequence[int], errors_SR: np.ndarray, law: PowerLaw | None, xlabel: str, ylabel: str
) -> "Figure":
    """Returns the error over the sizes: a point for each run; a law with its 95 % band."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot(np.repeat(sizes, errors_SR.shape[1]), errors_SR.ravel(), "k.", label="a run")
    if law is not None:
        places = np.geomspace(sizes[0], 4 * sizes[-1], 60)
        bands: list[Interval] = [forecast(sizes, errors_SR, place) for place in places]
        low, high = [band.low for band in bands], [band.high for band in bands]
        axes.fill_between(places, low, high, alpha=0.2, label="95 % interval of the law")
        axes.plot(places, law(places), label=f"{law.scale:.3g} n$^{{-{law.exponent:.3g}}}$ + {law.floor:.3g}")
    axes.set(xlabel=xlabel, ylabel=ylabel)
    seen = errors_SR[np.isfinite(errors_SR)]
    if seen.size:
        axes.set(xscale="log", yscale="log" if (seen > 0).all() else "linear")
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
