"""A learning curve: the error over the number of training examples, or over the number of parameters.

Every run has the number of steps and the batch size of the experiment, so a smaller part has more epochs. A
smaller part is always a subset of a larger one. A part that is larger than a batch is cut to whole batches
(`part.part_size`). Evaluation splits are not reduced. Models of several sizes train on the same data.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from dl.data.splits import short_notice
from dl.errors import UserError
from dl.evaluation.intervals import Interval
from dl.experiment import Experiment
from dl.metrics import Direction
from dl.runs.console import Console
from dl.runs.log import finite
from dl.runs.provenance import module_name
from dl.runs.tables import Table
from dl.sharding import make_mesh
from dl.stopping import FINAL_SPLIT
from dl.studies.curve_plan import Axis, Plan, plan_models, plan_parts
from dl.studies.curve_plot import plot
from dl.studies.fingerprint import direction_of, metric_directions
from dl.studies.folder import StudyKind, open_study, plain, usable
from dl.studies.power_law import PowerLaw, fit, forecast, objection
from dl.studies.runs import ResumeCommand, StudyRuns, with_defaults
from dl.studies.search import Dimension
from dl.training.population import Population

FRACTIONS = (0.05, 0.1, 0.2, 0.5, 1.0)


class Measure(NamedTuple):
    """The metric of a curve.

    Attributes:
      split: the split that it is measured on.
      metric: the name of the metric.
      direction: whether the smallest or the largest value is best.
    """

    split: str
    metric: str
    direction: Direction

    def error(self, value: Any) -> Any:
        """Returns the error: the metric itself, or 1 - metric. The function is its own inverse."""
        return value if self.direction == "min" else 1 - value

    @property
    def label(self) -> str:
        if self.direction == "min":
            return f"{self.split} {self.metric}"
        return f"{self.split} error" if self.metric == "accuracy" else f"{self.split} 1 - {self.metric}"


class Measured(NamedTuple):
    """The measurements at S sizes.

    Attributes:
      values: the values of the varied option, as text.
      sizes: the sizes in the unit of the axis.
      errors: the errors of R runs of each size, shape S × R; NaN if a run diverged.
      intervals: the intervals of the mean of the metric over the runs, from their results.
    """

    values: list[str]
    sizes: list[int]
    errors: np.ndarray
    intervals: list[tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class LearningCurve:
    """The result of a learning curve.

    Attributes:
      folder: the folder with its runs, curve.json and curve.png.
      varied: the option that has another value at each point, or `fraction`.
      axis: the horizontal axis.
      measure: the metric of the curve.
      measured: the measurements at each size.
      law: the power law. `None` if it cannot be fitted.
      objection: why there is no forecast. `None` if there is one.
      forecast: the error at twice the largest size, with its 95 % interval. `None` if the law does not fit.
      notice: what the user must know about the data. `None` means that there is nothing to know.
    """

    folder: Path
    varied: str
    axis: Axis
    measure: Measure
    measured: Measured
    law: PowerLaw | None
    objection: str | None
    forecast: Interval | None
    notice: str | None

    @property
    def table(self) -> Table:
        """The metric at each size with its 95 % interval, and the value of the law if it fits."""
        header, rows = [self.varied, self.axis.unit, "mean", "95 %"], []
        values, sizes, errors_SR, intervals = self.measured
        law = None if self.forecast is None else self.law
        for value, size, error_R, (low, high) in zip(values, sizes, errors_SR, intervals, strict=True):
            row = [value, f"{size:,}", f"{self.measure.error(error_R.mean()):.4f}", f"{low:.4f}..{high:.4f}"]
            rows.append(row if law is None else [*row, f"{self.measure.error(float(law(size))):.4f}"])
        title = f"{self.measure.split} {self.measure.metric} by {self.axis.label}"
        return Table(title, header if law is None else [*header, "law"], rows)

    @property
    def lines(self) -> list[str]:
        """Lines with the law and its forecast, each as `name=value`, or why there is no forecast."""
        measure, law = self.measure, self.law
        place = f"curve={self.folder}" + (f" NOTE: {short_notice(self.notice)}" if self.notice else "")
        if self.forecast is None or law is None:
            return [f"no forecast: {self.objection}", place]
        low, high = sorted((measure.error(self.forecast.low), measure.error(self.forecast.high)))
        name = f"{measure.split}_{measure.metric}_with_twice_the_{self.axis.whole}"
        return [
            f"{measure.label} = {law.scale:.3g} n^-{law.exponent:.3g} + {law.floor:.3g}",
            f"{name}={measure.error(self.forecast.estimate):.4f} ci95={low:.4f}..{high:.4f} "
            f"{self.axis.unit}={2 * self.measured.sizes[-1]} {place}",
        ]


def learning_curve(
    experiment_fn: Callable[..., Experiment],
    options: Mapping[str, Any] | None = None,
    *,
    fractions: Sequence[float] | None = None,
    over: Mapping[str, Dimension | Sequence[Any]] | None = None,
    metric: str | None = None,
    mode: Direction | None = None,
    num_seeds: int = 3,
    folder: Path | None = None,
    mesh: Mesh | None = None,
    console: Console | None = None,
    resume_command: ResumeCommand | None = None,
) -> LearningCurve:
    """Trains with increasing parts of the data, or increasing models, and fits a power law to the error.

    If the law does not fit, there is a table but no forecast. The interval describes the scatter of the runs,
    not whether the law holds beyond them.

    Args:
      experiment_fn: the function of the experiment.
      options: the options of all runs. An option that is left out has its default.
      fractions: the fractions of the training split, at least three. `None` means `FRACTIONS`.
      over: in place of fractions, the option that changes the size of the model, with at least three values.
      metric: the metric on the test split, or on the validation split if there is no test split. If large
        values are good, as for accuracy, the curve shows 1 - metric. `None` means accuracy, else loss.
      mode: whether the smallest or the largest value is best. `None` means that the metric states it.
      num_seeds: number of runs of each size, in one program; at least two.
      folder: the folder of the study. The same folder resumes the study. `None` means a new folder,
        runs/NAME-curve-TIME.
      mesh: the devices. `None` means all devices.
      console: where progress is printed.
      resume_command: returns, for a folder, the command line that resumes a stopped curve.

    Raises:
      UserError: an argument or a run has a mistake, or the experiment does not measure the metric.
    """
    console = console or Console()
    if fractions is not None and over is not None:
        raise UserError("fractions and over were both given; pass only one of them")
    if twice := (over or {}).keys() & (options or {}).keys():
        raise UserError(f"{twice.pop()} takes the values of over and is given another too; choose one")
    if num_seeds < 2:
        raise UserError(f"num_seeds={num_seeds} does not show the spread of the runs; it must be at least 2")
    fixed = with_defaults(experiment_fn, options)
    if over is None:
        plan = plan_parts(experiment_fn, fixed, FRACTIONS if fractions is None else fractions)
    else:
        plan = plan_models(experiment_fn, fixed, over)
    measure = _measure(plan.experiment, metric, mode)
    console.notice(plan.experiment.data.notice)
    name = module_name(experiment_fn)
    header = {
        "experiment": name,
        "varied": plan.varied,
        "options": plain({key: value for key, value in fixed.items() if key != plan.varied}),
        "unit": plan.axis.unit,
    }
    kind = StudyKind("learning curve", "curve.json", (f"{plan.varied}-*", "curve.png"))
    with open_study(kind, folder, f"{name.rpartition('.')[2]}-curve") as study:
        study.begin(header)
        runs = StudyRuns(experiment_fn, study, make_mesh() if mesh is None else mesh, resume_command)
        measured = _train_all(plan, measure, num_seeds, runs, console)
        record = {
            **header,
            "split": measure.split,
            "metric": measure.metric,
            "better": measure.direction,
            "values": measured.values,
            "sizes": measured.sizes,
            "errors": measured.errors.tolist(),
        }
        study.write(finite(record))  # the fit may fail
        found = _fit(study.folder, plan, measure, measured)
        ahead = found.forecast and {"size": 2 * measured.sizes[-1], **found.forecast._asdict()}
        law = None if found.law is None else found.law._asdict()
        study.write(finite({**record, "law": law, "objection": found.objection, "forecast": ahead}))
        with usable(study.folder):
            drawn = None if found.objection else found.law
            figure = plot(measured.sizes, measured.errors, drawn, plan.axis.label, measure.label)
            figure.savefig(study.folder / "curve.png", dpi=120)
        return found


def _train_all(plan: Plan, measure: Measure, num_seeds: int, runs: StudyRuns, console: Console) -> Measured:
    first = plan.experiment.seed
    population = Population(tuple(range(first, first + num_seeds)))
    values, sizes, errors, intervals = [], [], [], []
    for point in plan.points:
        part = f"{plan.varied}-{point.value.replace('/', '_')}"
        result = runs.train(part, point.definition.changed({"num_seeds": num_seeds}), population)
        figures = [member["metrics"][measure.split][measure.metric] for member in result["members"]]
        values.append(point.value)
        sizes.append(point.size)
        low, high = result["intervals"][measure.split][measure.metric]
        intervals.append((_number(low), _number(high)))
        errors.append([np.nan if figure is None else measure.error(figure) for figure in figures])
        mean = measure.error(np.mean(errors[-1]))
        place = f"{plan.varied}={point.value} ({point.size:,} {plan.axis.unit})"
        console.line(f"{place}: {measure.split} {measure.metric} {mean:.4f}")
    return Measured(values, sizes, np.array(errors), intervals)


def _number(bound: float | None) -> float:
    return np.nan if bound is None else bound  # result.json holds null for a number that is not finite


def _fit(folder: Path, plan: Plan, measure: Measure, measured: Measured) -> LearningCurve:
    sizes, errors_SR = measured.sizes, measured.errors
    why = _unfit(errors_SR, measure)
    law = None if why else fit(sizes, errors_SR.mean(1))
    if law is not None:
        why = objection(law, sizes, errors_SR)
    ahead = None if why else forecast(sizes, errors_SR, 2 * sizes[-1])
    notice = plan.experiment.data.notice
    return LearningCurve(folder, plan.varied, plan.axis, measure, measured, law, why, ahead, notice)


def _measure(experiment: Experiment, metric: str | None, mode: Direction | None) -> Measure:
    """Returns the metric of the curve; raises UserError if the experiment does not measure it."""
    evaluations = experiment.data.evaluations
    split = FINAL_SPLIT if FINAL_SPLIT in evaluations else "validation"
    if split not in evaluations:
        raise UserError("the data have neither a test nor a validation split; a learning curve needs one")
    directions = metric_directions(experiment)
    metric = metric or ("accuracy" if "accuracy" in directions else "loss")
    if metric not in directions:
        raise UserError(f"metric={metric!r} is not measured; choose one of {', '.join(directions)}")
    return Measure(split, metric, direction_of(metric, directions, mode))


def _unfit(errors_SR: np.ndarray, measure: Measure) -> str | None:
    """Returns why a law cannot be fitted to the errors; `None` if it can."""
    if not np.isfinite(errors_SR).all():
        return f"{measure.label} of a run is not a finite number"
    if errors_SR.min() < 0:
        value = measure.error(errors_SR.min())
        return f"{measure.split} {measure.metric} of a run is {value:.4g}, so that {measure.label} is below 0"
    return None
