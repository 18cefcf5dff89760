"""A benchmark: every method is tuned with the same budget, then measured with fresh seeds.

The hyperparameter that is tuned takes several values, with several seeds each: all in one program where only
the optimizer depends on it, else one program for each value. The mean of a validation metric chooses; the
test split is read by the runs with fresh seeds only.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from dl.data.splits import short_notice
from dl.errors import Diverged, UserError
from dl.experiment import Experiment
from dl.option_types import Options
from dl.runs.console import Console
from dl.runs.definition import Definition
from dl.runs.log import finite
from dl.runs.provenance import module_name
from dl.sharding import make_mesh
from dl.stopping import FINAL_SPLIT, look_up, sign_of
from dl.studies.benchmark_tables import bounds, curve_key, format_table, plot, shown_as
from dl.studies.comparison import Evidence, compare
from dl.studies.fingerprint import fingerprint, metric_directions
from dl.studies.folder import StudyKind, open_study, plain, usable
from dl.studies.probe import hide_test
from dl.studies.runs import ResumeCommand, StudyRuns, check_options, with_defaults
from dl.training.population import Population

BENCHMARK = StudyKind(
    "benchmark",
    "benchmark.json",
    ("tune-*", "final-*", "benchmark.md", "benchmark.png", "race.*"),
    former_record="race.json",
    former_keys={"lanes": "rows"},
)


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """What a benchmark has found.

    Attributes:
      folder: that holds its runs, benchmark.json, benchmark.md and benchmark.png.
      methods: the option that tells the methods apart.
      tuned: the option that was tuned.
      test_metric: what the methods are ranked by.
      rows: of the methods, the best first: `name`, the chosen value of `tuned`, `test` with its `interval`
        and its `scores` by seed, the validation curves over `values`, and the `difference` to the reference.
      reference: the method that the others are compared with.
      notice: of the data; None where they are what was asked for.
    """

    folder: Path
    methods: str
    tuned: str
    test_metric: str
    rows: Sequence[dict[str, Any]]
    reference: str | None
    notice: str | None

    @property
    def markdown(self) -> str:
        """The table of all methods, and below it what must be known of the data."""
        table = format_table(self.rows, self.methods, self.tuned, self.reference, self.test_metric)
        return f"{table}\n\nNOTE: {short_notice(self.notice)}" if self.notice else table


def benchmark(
    experiment_fn: Callable[..., Experiment],
    methods: str,
    names: Collection[str],
    tuned: str,
    values: Sequence[float] | Mapping[str, Sequence[float]],
    options: Mapping[str, Any] | None = None,
    *,
    metric: str = "loss",
    test_metric: str = "accuracy",
    reference: str | None = None,
    tuning_seeds: int = 3,
    final_seeds: int = 10,
    folder: Path | None = None,
    mesh: Mesh | None = None,
    console: Console | None = None,
    resume_command: ResumeCommand | None = None,
) -> Benchmark:
    """Tunes one hyperparameter of every method alike, then measures each method with fresh seeds.

    Args:
      experiment_fn: the function of the experiment.
      methods: its option that tells the methods apart, such as `optimizer`.
      names: the values of that option.
      tuned: the option that is tuned for each, a number.
      values: that it takes; by method where they differ, just one where there is nothing to tune.
      options: of all runs; the others have their defaults.
      metric: of validation, that chooses; best is what the metric states. The metric that the methods are
        ranked by is the fairest.
      test_metric: that the methods are ranked by; it must state whether small or large values are good.
      reference: the method that all others are compared with, by Student's paired test over the seeds.
      tuning_seeds: for each value of the hyperparameter.
      final_seeds: fresh ones, for the metrics of test.
      folder: of the study; the same folder again resumes it. None: runs/NAME-TIME.
      mesh: the devices; all of them if None.
      console: where progress is printed.
      resume_command: from the folder to what a stopped benchmark tells its user to type.

    Raises:
      ValueError: the reference is not one of the methods.
      UserError: a mistake in the arguments or in a run, or a method diverges at every value.
    """
    if reference is not None and reference not in names:
        raise ValueError(f"reference={reference!r} is not one of {', '.join(names)}")
    console = console or Console()
    check_options(experiment_fn, dict.fromkeys((methods, tuned)))
    fixed = with_defaults(experiment_fn, options)
    experiment = Definition(experiment_fn, {**fixed, methods: next(iter(names))}).build()
    judged = _measures(experiment, metric, test_metric)
    console.notice(experiment.data.notice)
    name = module_name(experiment_fn)
    header = {"experiment": name, "options": plain(fixed)}
    with open_study(BENCHMARK, folder, name.rpartition(".")[2]) as study:
        study.begin(header)
        runs = StudyRuns(experiment_fn, study, make_mesh() if mesh is None else mesh, resume_command)
        rows = []
        finals: dict[str, Evidence] = {}
        for method in names:
            own = values[method] if isinstance(values, Mapping) else values
            row, final = _Method(runs, method, {**fixed, methods: method}, tuned, own).measure(
                judged, tuning_seeds, final_seeds
            )
            shown = f"{shown_as(row['test'], test_metric)} ({bounds(row, test_metric)})"
            chosen = f"{tuned}={row[tuned]:g}, " if len(own) > 1 else ""
            console.line(f"{method}: {chosen}test {test_metric} {shown}, {row['seconds']} s")
            rows.append(row)
            finals[method] = Evidence(method, {}, final)
        if reference is not None:
            for row in (row for row in rows if row["name"] != reference):
                row["difference"] = _difference(finals[reference], finals[row["name"]], test_metric)
        rows.sort(key=lambda row: judged.sign_of_test * row["test"])
        notice = experiment.data.notice
        study.write({**header, "test_metric": test_metric, "notice": notice, "rows": rows})
        found = Benchmark(study.folder, methods, tuned, test_metric, rows, reference, notice)
        with usable(study.folder):
            (study.folder / "benchmark.md").write_text(found.markdown + "\n", encoding="utf-8")
            plot(rows, tuned, study.folder / "benchmark.png", metric, reference, test_metric)
        return found


class _Judged(NamedTuple):
    """What decides; a sign is 1 where small values are good, else -1."""

    metric: str
    sign: int
    test_metric: str
    sign_of_test: int


def _measures(experiment: Experiment, metric: str, test_metric: str) -> _Judged:
    """Raises UserError before anything is trained for a metric that is not measured, or has no direction."""
    directions = metric_directions(experiment)
    known = dict.fromkeys(directions, np.zeros(()))
    for split, name in (("validation", metric), (FINAL_SPLIT, test_metric)):
        look_up(dict.fromkeys(experiment.data.evaluations, known), split, name)
    return _Judged(
        metric, -int(sign_of(metric, directions)), test_metric, -int(sign_of(test_metric, directions))
    )


@dataclasses.dataclass(frozen=True)
class _Method:
    """One method: it is tuned, then measured.

    Attributes:
      runs: what trains.
      name: of the method.
      options: of its runs.
      tuned: the option that is tuned.
      values: that it takes.
    """

    runs: StudyRuns
    name: str
    options: Options
    tuned: str
    values: Sequence[float]

    def measure(
        self, judged: _Judged, tuning_seeds: int, final_seeds: int
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the row of the method, and the result of its runs with fresh seeds."""
        first, values, metric = self.options.get("seed", 0), self.values, judged.metric
        share = len(values) > 1 and _may_share(
            self._at(values[0]).build(), self._at(values[-1]).build(), self._population([first], values)
        )
        seconds = 0.0
        curves: dict[str, list[float]] = {"loss": [], metric: []}  # the loss tells who has diverged
        for numbers in [values] if share else [[value] for value in values]:
            part = f"tune-{self.name}" if share else f"tune-{self.name}-{numbers[0]:g}"
            trained: list[dict[str, Any]] = []
            with contextlib.suppress(Diverged):
                tuning = self._train(part, range(first, first + tuning_seeds), numbers, share, FINAL_SPLIT)
                seconds += tuning["seconds"]
                trained = tuning["members"]
            for value in numbers:
                own = [member for member in trained if member.get(self.tuned, value) == value]
                for name, curve in curves.items():
                    curve.append(_mean([member["metrics"]["validation"].get(name, 0.0) for member in own]))
        # A run that diverged has no loss, but an accuracy.
        has_diverged = ~np.isfinite(curves["loss"]) | ~np.isfinite(curves[metric])
        if has_diverged.all():
            raise UserError(
                f"{self.name} diverges at every {self.tuned} of {list(values)}; let the benchmark try lower "
                "values"
            )
        best = int(np.argmin(np.where(has_diverged, np.inf, judged.sign * np.array(curves[metric]))))
        # Seeds that chose nothing.
        fresh = range(first + tuning_seeds, first + tuning_seeds + final_seeds)
        final = self._train(f"final-{self.name}", fresh, [values[best]], share)
        scores = np.array([row["metrics"][FINAL_SPLIT][judged.test_metric] for row in final["members"]])
        row = {
            "name": self.name,
            self.tuned: values[best],
            "is_at_the_edge": len(values) > 1 and best in (0, len(values) - 1),
            **{curve_key(name): finite(curve) for name, curve in curves.items()},
            "values": list(values),
            "test": float(scores.mean()),
            # As the runs state it: a share stays within [0, 1].
            "interval": final["intervals"][FINAL_SPLIT][judged.test_metric] if len(scores) > 1 else None,
            "scores": scores.tolist(),
            "seconds": round(seconds + final["seconds"], 1),
        }
        return row, final

    def _at(self, value: float) -> Definition:
        return Definition(self.runs.experiment_fn, {**self.options, self.tuned: value})

    def _population(self, seeds: Sequence[int], values: Sequence[float]) -> Population:
        grid = [(seed, value) for value in values for seed in seeds]
        return Population(
            tuple(seed for seed, _ in grid),
            {self.tuned: tuple(value for _, value in grid)},
            lambda own: self.runs.experiment_fn(**{**self.options, **own}).tx,
        )

    def _train(
        self, part: str, seeds: Sequence[int], values: Sequence[float], share: bool, hidden: str | None = None
    ) -> dict[str, Any]:
        """Trains all seeds with all values, in one program; there is one value where they do not share."""
        population = self._population(seeds, values) if share else Population(tuple(seeds))
        described = [population.describe(k) for k in range(len(population))]
        definition = self._at(values[0]).changed({"members": described})
        if share:  # the runs say which values they have
            definition = definition.changed({self.tuned: self.options[self.tuned]})
        if hidden is not None:
            definition = definition.changed({}, hide_test)
        return self.runs.train(part, definition, population)


def _mean(values: Sequence[float | None]) -> float:
    """Returns the mean over seeds; NaN where one of them diverged (None where it is read from a file)."""
    return math.nan if not values or None in values else float(np.mean(values))  # type: ignore[arg-type]


def _may_share(one: Experiment, other: Experiment, population: Population) -> bool:
    """Whether experiments differ in a hyperparameter of the optimizer alone, judged by the two outermost."""
    kind = fingerprint(one)
    if kind is None or kind != fingerprint(other):
        return False

    def make(traced: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
        population.tx(traced, one.tx)
        return traced

    try:
        jax.eval_shape(make, {name: numbers[0] for name, numbers in population.options.items()})
    except UserError:
        return False
    return True


def _difference(reference: Evidence, other: Evidence, metric: str) -> dict[str, Any]:
    """Returns the test metric minus the reference's, over the seeds, with its interval and a verdict."""
    figures = {(figure.split, figure.metric): figure for figure in compare([reference], [other])}
    figure = figures[FINAL_SPLIT, metric]
    interval = figure.difference
    return {
        "estimate": figure.other - figure.first,
        "interval": None if interval is None else [interval.low, interval.high],
        "test": figure.test,
        "verdict": figure.verdict,
    }
