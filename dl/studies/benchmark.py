"""A fair race: every contestant is tuned with the same budget, then measured with fresh seeds.

The number that is tuned takes several values, with several seeds each: all in one program where only the
optimizer depends on it, else one program for each value. The mean of a validation metric chooses; the test
split is read by the runs with fresh seeds only.
"""

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from dl.cli.main import run_as_command
from dl.cli.options import parse
from dl.data.splits import ChangedSplits
from dl.errors import Diverged, UserError
from dl.experiment import Experiment
from dl.option_types import Options, PositiveInt
from dl.runs.console import Console
from dl.runs.folder import Run, this_command
from dl.runs.log import finite
from dl.runs.provenance import build, code_of, legacy_code_of, module_name
from dl.sharding import make_mesh_of
from dl.stopping import FINAL_SPLIT, look_up, sign_of
from dl.studies.benchmark_tables import bounds, curve_key, format_table, plot, shown_as
from dl.studies.comparison import Evidence, compare
from dl.studies.fingerprint import fingerprint, metric_directions
from dl.studies.folder import Kind, open_study, plain, usable
from dl.training.loop import train
from dl.training.population import Population

RACE = Kind("race", "race.json", ("tune-*", "final-*", "race.md", "race.png"))


@dataclasses.dataclass(frozen=True)
class RaceOptions:
    """Where a race happens, and with how many seeds.

    Attributes:
      workdir: the folder of the race; the same folder again goes on. None: runs/NAME-TIME.
      data_dir: the folder of prepared data sets. None: $TFDS_DATA_DIR, else ~/tensorflow_datasets.
      mesh: device axes, such as data=8. None: all devices on data.
      tuning_seeds: for each value of the number that is tuned.
      final_seeds: fresh ones, for the figures.
    """

    workdir: Path | None = None
    data_dir: Path | None = None
    mesh: str | None = None
    tuning_seeds: PositiveInt = 3
    final_seeds: PositiveInt = 10


def main(
    experiment_fn: Callable[..., Experiment],
    contestants: str,
    names: Collection[str],
    tuned: str,
    values: Sequence[float] | Mapping[str, Sequence[float]],
    argv: Sequence[str] | None = None,
    *,
    metric: str = "loss",
    test_metric: str = "accuracy",
    reference: str | None = None,
) -> None:
    """Reads the command line and holds the race; prints a table, writes race.json, race.md and race.png.

    Args:
      experiment_fn: as for an experiment; two of its options are the race's.
      contestants: the option that tells the contestants apart, such as `optimizer`.
      names: its values.
      tuned: the option that is tuned for each, a number.
      values: that it takes; by contestant where they differ, just one where there is nothing to tune.
      argv: the arguments of the command line.
      metric: of validation, that chooses, as it states whether small or large values are good; the one that
        the figures are of is fairest to them.
      test_metric: that the figures are of; it must state the same of itself.
      reference: the contestant that all others are compared with, by Student's paired test over the seeds.

    Raises:
      ValueError: the reference is no contestant.
    """
    if reference is not None and reference not in names:
        raise ValueError(f"reference={reference!r} is none of {', '.join(names)}")
    name = module_name(experiment_fn)

    def run() -> None:
        options, race = parse(experiment_fn, RaceOptions, argv, f"python -m {name}")
        if race.data_dir is not None:
            os.environ["TFDS_DATA_DIR"] = str(race.data_dir)
        mesh = make_mesh_of(race.mesh)
        judged = _measures(experiment_fn, {**options, contestants: next(iter(names))}, metric, test_metric)
        header = {"experiment": name, "options": plain(options)}
        with open_study(RACE, race.workdir, name.rpartition(".")[2]) as study:
            if study.resume(header) is None:
                study.write(header)
            lanes = []
            finals: dict[str, Evidence] = {}
            for lane in names:
                own = values[lane] if isinstance(values, Mapping) else values
                options_of_lane = {**options, contestants: lane}
                row, final = _run_lane(
                    experiment_fn, options_of_lane, lane, tuned, own, judged, race, study.folder, mesh
                )
                lanes.append(row)
                finals[lane] = Evidence(lane, {}, final)
            if reference is not None:
                for row in (row for row in lanes if row["name"] != reference):
                    row["difference"] = _difference(finals[reference], finals[row["name"]], test_metric)
            lanes.sort(key=lambda lane: judged.sign_of_test * lane["test"])
            study.write({**header, "test_metric": test_metric, "lanes": lanes})
            table = format_table(lanes, contestants, tuned, reference, test_metric)
            with usable(study.folder):
                (study.folder / "race.md").write_text(table + "\n", encoding="utf-8")
                plot(lanes, tuned, study.folder / "race.png", metric, reference, test_metric)
            print(f"\n{table}\n\nwritten to {study.folder}/race.json, race.md and race.png")

    run_as_command(run)


class _Judged(NamedTuple):
    """What decides; a sign is 1 where small values are good, else -1."""

    metric: str
    sign: int
    test_metric: str
    sign_of_test: int


def _measures(
    experiment_fn: Callable[..., Experiment], options: Options, metric: str, test_metric: str
) -> _Judged:
    """Raises UserError before anything is trained for a metric that is not measured, or has no direction."""
    experiment = build(experiment_fn, options)
    directions = metric_directions(experiment)
    known = dict.fromkeys(directions, np.zeros(()))
    for split, name in (("validation", metric), (FINAL_SPLIT, test_metric)):
        look_up(dict.fromkeys(experiment.data.evaluations, known), split, name)
    return _Judged(
        metric, -int(sign_of(metric, directions)), test_metric, -int(sign_of(test_metric, directions))
    )


def _run_lane(
    experiment_fn: Callable[..., Experiment],
    options: Options,
    lane: str,
    tuned: str,
    values: Sequence[float],
    judged: _Judged,
    race: RaceOptions,
    folder: Path,
    mesh: Mesh,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the row of one contestant, and the result of its runs with fresh seeds."""
    first, metric = options.get("seed", 0), judged.metric
    resume = this_command(module_name(experiment_fn), folder)

    def at(value: float) -> Experiment:
        return experiment_fn(**{**options, tuned: value})

    def population_of(seeds: Sequence[int], numbers: Sequence[float]) -> Population:
        grid = [(seed, number) for number in numbers for seed in seeds]
        return Population(
            tuple(seed for seed, _ in grid),
            {tuned: tuple(number for _, number in grid)},
            lambda own: experiment_fn(**{**options, **own}).tx,
        )

    share = len(values) > 1 and _may_share(at(values[0]), at(values[-1]), population_of([first], values))

    def train_population(
        part: str, seeds: Sequence[int], numbers: Sequence[float], hidden: str | None = None
    ) -> dict[str, Any]:
        experiment = at(numbers[0])
        if hidden is not None:
            experiment = dataclasses.replace(
                experiment, data=ChangedSplits(experiment.data, without=[hidden])
            )
        population = population_of(seeds, numbers) if share else Population(tuple(seeds))
        recorded = options if share else {**options, tuned: numbers[0]}
        recorded = {**recorded, "members": [population.describe(k) for k in range(len(population))]}
        name, code = module_name(experiment_fn), code_of(experiment_fn)
        run = Run(folder / part, name, recorded, code, resume, legacy_code=legacy_code_of(experiment_fn))
        return train(experiment, run, mesh, population=population, console=Console(is_quiet=True))

    first_seeds = range(first, first + race.tuning_seeds)
    seconds = 0.0
    curves: dict[str, list[float]] = {"loss": [], metric: []}  # the loss tells who has diverged
    for numbers in [values] if share else [[value] for value in values]:
        part = f"tune-{lane}" if share else f"tune-{lane}-{numbers[0]:g}"
        tuned_members: list[dict[str, Any]] = []
        with contextlib.suppress(Diverged):
            tuning = train_population(part, first_seeds, numbers, hidden=FINAL_SPLIT)
            seconds += tuning["seconds"]
            tuned_members = tuning["members"]
        for value in numbers:
            of_value = [m["metrics"]["validation"] for m in tuned_members if m.get(tuned, value) == value]
            for name, curve in curves.items():
                curve.append(_mean([figures.get(name, 0.0) for figures in of_value]))
    # A run that diverged has no loss, but an accuracy.
    has_diverged = ~np.isfinite(curves["loss"]) | ~np.isfinite(curves[metric])
    if has_diverged.all():
        raise UserError(f"{lane} diverges at every {tuned} of {list(values)}; let the race try lower ones")
    best = int(np.argmin(np.where(has_diverged, np.inf, judged.sign * np.array(curves[metric]))))
    # Seeds that chose nothing.
    fresh = range(first + race.tuning_seeds, first + race.tuning_seeds + race.final_seeds)
    final = train_population(f"final-{lane}", fresh, [values[best]])
    scores = np.array([member["metrics"][FINAL_SPLIT][judged.test_metric] for member in final["members"]])
    row = {
        "name": lane,
        tuned: values[best],
        "is_at_the_edge": len(values) > 1 and best in (0, len(values) - 1),
        **{curve_key(name): finite(curve) for name, curve in curves.items()},
        "values": list(values),
        "test": float(scores.mean()),
        # As the runs state it: a share stays within [0, 1].
        "interval": final["intervals"][FINAL_SPLIT][judged.test_metric] if len(scores) > 1 else None,
        "scores": scores.tolist(),
        "seconds": round(seconds + final["seconds"], 1),
    }
    chosen = f"{tuned}={values[best]:g}, " if len(values) > 1 else ""
    shown = f"{shown_as(row['test'], judged.test_metric)} ({bounds(row, judged.test_metric)})"
    print(f"{lane}: {chosen}test {judged.test_metric} {shown}, {row['seconds']} s", flush=True)
    return row, final


def _mean(values: Sequence[float | None]) -> float:
    """Returns the mean over seeds; NaN where one of them diverged (None where it is read from a file)."""
    return math.nan if not values or None in values else float(np.mean(values))  # type: ignore[arg-type]


def _may_share(one: Experiment, other: Experiment, population: Population) -> bool:
    """Whether experiments differ in nothing but a number of the optimizer, judged by the two outermost."""
    kind = fingerprint(one)
    if kind is None or kind != fingerprint(other):
        return False

    def build(traced: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
        population.tx(traced, one.tx)
        return traced

    try:
        jax.eval_shape(build, {name: numbers[0] for name, numbers in population.options.items()})
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
