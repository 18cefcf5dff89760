"""A benchmark: every method is tuned with the same budget, then measured with fresh seeds.

The tuned hyperparameter takes several values, with several seeds each. They are trained in one program if
only the optimizer depends on the hyperparameter, else in one program for each value. The value with the best
mean of a validation metric is selected. Only the runs with fresh seeds read the test split.
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
    """The result of a benchmark.

    Attributes:
      folder: the folder with its runs, benchmark.json, benchmark.md and benchmark.png.
      methods: the option whose values are the methods.
      tuned: the option that was tuned.
      test_metric: the metric that ranks the methods.
      rows: one for each method, the best first: `name`, the selected value of `tuned`, `test`, its
        `interval` and `scores` by seed, validation curves over `values`, and `difference` to the reference.
      reference: the method that the others are compared with. `None` means no comparison.
      notice: what the user must know about the data. `None` means that there is nothing to know.
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
        """The table of all methods, with the notice about the data below it."""
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
    """Tunes one hyperparameter of every method in the same way, then measures each method with fresh seeds.

    Args:
      experiment_fn: the function of the experiment.
      methods: the option whose values are the methods, such as `optimizer`.
      names: the values of that option.
      tuned: the option that is tuned for each method. Its values are numbers.
      values: the values of `tuned`: one list for all, or one for each method. One value is not tuned.
      options: the options of all runs. An option that is left out has its default.
      metric: the validation metric that selects the value. The fairest choice is `test_metric`.
      test_metric: the metric that ranks the methods. It must state whether small or large values are good.
      reference: the method that all others are compared with, by Student's paired test over the seeds.
      tuning_seeds: number of seeds for each value of the hyperparameter.
      final_seeds: number of fresh seeds for the test metric.
      folder: the folder of the study. The same folder resumes the study. `None` means a new folder,
        runs/NAME-TIME.
      mesh: the devices. `None` means all devices.
      console: where progress is printed.
      resume_command: returns, for a folder, the command line that resumes a stopped benchmark.

    Raises:
      ValueError: the reference is not one of the methods.
      UserError: an argument or a run has a mistake, or a method diverges at every value.
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
            candidates = values[method] if isinstance(values, Mapping) else values
            row, final = _Method(runs, method, {**fixed, methods: method}, tuned, candidates).measure(
                judged, tuning_seeds, final_seeds
            )
            shown = f"{shown_as(row['test'], test_metric)} ({bounds(row, test_metric)})"
            chosen = f"{tuned}={row[tuned]:g}, " if len(candidates) > 1 else ""
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
    """The metrics that decide. A sign is 1 if small values are good, else -1."""

    metric: str
    sign: int
    test_metric: str
    sign_of_test: int


def _measures(experiment: Experiment, metric: str, test_metric: str) -> _Judged:
    """Returns the metrics that decide; raises UserError if one is not measured or has no direction."""
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
      runs: the object that trains the runs.
      name: the name of the method.
      options: the options of its runs.
      tuned: the option that is tuned.
      values: the values of the tuned option.
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
        curves: dict[str, list[float]] = {"loss": [], metric: []}  # the loss shows which runs have diverged
        for numbers in [values] if share else [[value] for value in values]:
            part = f"tune-{self.name}" if share else f"tune-{self.name}-{numbers[0]:g}"
            trained: list[dict[str, Any]] = []
            with contextlib.suppress(Diverged):
                tuning = self._train(part, range(first, first + tuning_seeds), numbers, share, FINAL_SPLIT)
                seconds += tuning["seconds"]
                trained = tuning["members"]
            for value in numbers:
                same = [member for member in trained if member.get(self.tuned, value) == value]
                for name, curve in curves.items():
                    curve.append(_mean([member["metrics"]["validation"].get(name, 0.0) for member in same]))
        # A run that has diverged has no loss, but it may have an accuracy.
        has_diverged = ~np.isfinite(curves["loss"]) | ~np.isfinite(curves[metric])
        if has_diverged.all():
            raise UserError(
                f"{self.name} diverges at every {self.tuned} of {list(values)}; let the benchmark try lower "
                "values"
            )
        best = int(np.argmin(np.where(has_diverged, np.inf, judged.sign * np.array(curves[metric]))))
        # Seeds that were not used for tuning.
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
            # The interval of the result: that of a proportion stays within [0, 1].
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
        """Trains all seeds with all values in one program; without `share` there is one value."""
        population = self._population(seeds, values) if share else Population(tuple(seeds))
        described = [population.describe(k) for k in range(len(population))]
        definition = self._at(values[0]).changed({"members": described})
        if share:  # the population records the value of each run
            definition = definition.changed({self.tuned: self.options[self.tuned]})
        if hidden is not None:
            definition = definition.changed({}, hide_test)
        return self.runs.train(part, definition, population)


def _mean(values: Sequence[float | None]) -> float:
    """Returns the mean over seeds; NaN if one of them diverged (its value is None in a file)."""
    return math.nan if not values or None in values else float(np.mean(values))  # type: ignore[arg-type]


def _may_share(one: Experiment, other: Experiment, population: Population) -> bool:
    """Whether the first and the last experiment differ only in a hyperparameter of the optimizer."""
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
