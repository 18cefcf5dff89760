"""A fair race: every contestant is tuned with the same budget, then measured with fresh seeds.

The number that is tuned takes several values, with several seeds each: all in one program where only the
optimizer depends on it, else one program for each value. The mean validation loss or accuracy chooses; the
test split is read by the runs with fresh seeds only.
"""

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from dl.command import code_of, make_mesh_of, module_name, run_as_command
from dl.comparison import Evidence, compare
from dl.console import Console
from dl.data.splits import ChangedSplits
from dl.errors import Diverged, UserError
from dl.evaluation.intervals import t_interval
from dl.experiment import Experiment
from dl.likeness import fingerprint
from dl.log import finite
from dl.loop import train
from dl.members import Members
from dl.options import Options, PositiveInt, parse
from dl.run import Run, as_recorded, this_command, write_json
from dl.selection import FINAL_SPLIT


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
    metric: Literal["loss", "accuracy"] = "loss",
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
      metric: of validation, that chooses; the one that the figures are of is fairest to them.
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
        stem = f"{name.rpartition('.')[2]}-{time.strftime('%Y%m%d-%H%M%S')}"
        folder = race.workdir or Path("runs") / stem
        resume = this_command(name, folder)
        mesh = make_mesh_of(race.mesh)
        lanes = []
        finals: dict[str, Evidence] = {}
        for lane in names:
            own = values[lane] if isinstance(values, Mapping) else values
            options_of_lane = {**options, contestants: lane}
            row, final = _run_lane(
                experiment_fn, options_of_lane, lane, tuned, own, metric, race, folder, mesh, resume
            )
            lanes.append(row)
            finals[lane] = Evidence(lane, {}, final)
        if reference is not None:
            for row in (row for row in lanes if row["name"] != reference):
                row["difference"] = _difference(finals[reference], finals[row["name"]])
        lanes.sort(key=lambda lane: -lane["test"])
        table = format_table(lanes, contestants, tuned, reference)
        write_json(folder / "race.json", {"options": as_recorded(options), "lanes": lanes})
        (folder / "race.md").write_text(table + "\n", encoding="utf-8")
        plot(lanes, tuned, folder / "race.png", metric, reference)
        print(f"\n{table}\n\nwritten to {folder}/race.json, race.md and race.png")

    run_as_command(run)


def _run_lane(
    experiment_fn: Callable[..., Experiment],
    options: Options,
    lane: str,
    tuned: str,
    values: Sequence[float],
    metric: str,
    race: RaceOptions,
    folder: Path,
    mesh: Mesh,
    resume: str,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the row of one contestant, and the result of its runs with fresh seeds."""
    first = options.get("seed", 0)

    def at(value: float) -> Experiment:
        return experiment_fn(**{**options, tuned: value})

    def members_of(seeds: Sequence[int], numbers: Sequence[float]) -> Members:
        grid = [(seed, number) for number in numbers for seed in seeds]
        return Members(
            tuple(seed for seed, _ in grid),
            {tuned: tuple(number for _, number in grid)},
            lambda own: experiment_fn(**{**options, **own}).tx,
        )

    share = len(values) > 1 and _may_share(at(values[0]), at(values[-1]), members_of([first], values))

    def train_members(
        part: str, seeds: Sequence[int], numbers: Sequence[float], hidden: str | None = None
    ) -> dict[str, Any]:
        experiment = at(numbers[0])
        if hidden is not None:
            experiment = dataclasses.replace(
                experiment, data=ChangedSplits(experiment.data, without=[hidden])
            )
        members = members_of(seeds, numbers) if share else Members(tuple(seeds))
        recorded = options if share else {**options, tuned: numbers[0]}
        recorded = {**recorded, "members": [members.describe(k) for k in range(len(members))]}
        name, code = module_name(experiment_fn), code_of(experiment_fn)
        run = Run(folder / part, name, recorded, code, resume)
        return train(experiment, run, mesh, members=members, console=Console(is_quiet=True))

    first_seeds = range(first, first + race.tuning_seeds)
    seconds = 0.0
    curves: dict[str, list[float]] = {"loss": [], metric: []}
    for numbers in [values] if share else [[value] for value in values]:
        part = f"tune-{lane}" if share else f"tune-{lane}-{numbers[0]:g}"
        tuned_members: list[dict[str, Any]] = []
        with contextlib.suppress(Diverged):
            tuning = train_members(part, first_seeds, numbers, hidden=FINAL_SPLIT)
            seconds += tuning["seconds"]
            tuned_members = tuning["members"]
        for value in numbers:
            of_value = [m["metrics"]["validation"] for m in tuned_members if m.get(tuned, value) == value]
            for name, curve in curves.items():
                curve.append(_mean([figures[name] for figures in of_value]))
    # A run that diverged has no loss, but an accuracy.
    has_diverged = ~np.isfinite(curves["loss"])
    if has_diverged.all():
        raise UserError(f"{lane} diverges at every {tuned} of {list(values)}; let the race try lower ones")
    sign = 1 if metric == "loss" else -1
    best = int(np.argmin(np.where(has_diverged, np.inf, sign * np.array(curves[metric]))))
    # Seeds that chose nothing.
    fresh = range(first + race.tuning_seeds, first + race.tuning_seeds + race.final_seeds)
    final = train_members(f"final-{lane}", fresh, [values[best]])
    scores = np.array([member["metrics"][FINAL_SPLIT]["accuracy"] for member in final["members"]])
    row = {
        "name": lane,
        tuned: values[best],
        "is_at_the_edge": len(values) > 1 and best in (0, len(values) - 1),
        **{
            f"validation_{'losses' if name == 'loss' else 'accuracies'}": finite(curve)
            for name, curve in curves.items()
        },
        "values": list(values),
        "test": float(scores.mean()),
        "interval": t_interval(scores).high - float(scores.mean()) if len(scores) > 1 else None,
        "scores": scores.tolist(),
        "seconds": round(seconds + final["seconds"], 1),
    }
    chosen = f"{tuned}={values[best]:g}, " if len(values) > 1 else ""
    print(f"{lane}: {chosen}test accuracy {row['test']:.2%} ± {_margin(row)}, {row['seconds']} s", flush=True)
    return row, final


def _mean(values: Sequence[float | None]) -> float:
    """Returns the mean over seeds; NaN where one of them diverged (None where it is read from a file)."""
    return math.nan if not values or None in values else float(np.mean(values))  # type: ignore[arg-type]


def _may_share(one: Experiment, other: Experiment, members: Members) -> bool:
    """Whether experiments differ in nothing but a number of the optimizer, judged by the two outermost."""
    kind = fingerprint(one)
    if kind is None or kind != fingerprint(other):
        return False

    def build(traced: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
        members.tx(traced, one.tx)
        return traced

    try:
        jax.eval_shape(build, {name: numbers[0] for name, numbers in members.options.items()})
    except UserError:
        return False
    return True


def _difference(reference: Evidence, other: Evidence) -> dict[str, Any]:
    """Returns the test accuracy minus the reference's, over the seeds, with its interval and a verdict."""
    figures = {(figure.split, figure.metric): figure for figure in compare([reference], [other])}
    figure = figures[FINAL_SPLIT, "accuracy"]
    interval = figure.difference
    return {
        "estimate": figure.other - figure.first,
        "interval": None if interval is None else [interval.low, interval.high],
        "test": figure.test,
        "verdict": figure.verdict,
    }


def _margin(lane: dict[str, Any]) -> str:
    return "unknown" if lane["interval"] is None else f"{lane['interval']:.2%}"


def format_table(
    lanes: Sequence[dict[str, Any]], contestants: str, tuned: str, reference: str | None = None
) -> str:
    """Returns the rows as a Markdown table; `better` and `worse` only where the interval excludes zero."""
    lines = [
        f"| {contestants} | {tuned} | test accuracy, mean of {len(lanes[0]['scores'])} seeds | ± 95 % |",
        "|---|---|---|---|",
    ]
    if reference is not None:
        lines = [f"{lines[0]} points more than {reference} (95 %) | |", f"{lines[1]}---|---|"]
    for lane in lanes:
        edge = " (edge of the range)" if lane["is_at_the_edge"] else ""
        number = f"{lane[tuned]:g}{edge}" if len(lane["values"]) > 1 else ""
        line = f"| {lane['name']} | {number} | {lane['test']:.2%} | {_margin(lane)} |"
        lines.append(line if reference is None else f"{line} {_compared(lane)} |")
    return "\n".join(lines).replace("%", " %").replace("95  %", "95 %")


def _compared(lane: dict[str, Any]) -> str:
    """Returns the last two cells of a row."""
    difference = lane.get("difference")
    if difference is None:
        return " | "
    shown = f"{100 * difference['estimate']:+z.2f}"
    if difference["interval"] is None:
        return f"{shown} | {difference['test']}"
    low, high = (100 * bound for bound in difference["interval"])
    verdict = difference["verdict"] if difference["verdict"] in ("better", "worse") else ""
    return f"{shown} ({low:+.2f} to {high:+.2f}) | {verdict}"


def plot(
    lanes: Sequence[dict[str, Any]],
    tuned: str,
    path: Path,
    metric: str = "loss",
    reference: str | None = None,
) -> None:
    """Writes the validation metric over the tuned number, and the test accuracy with its interval."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    styles = ["-", "--", ":", "-."]
    factor, key, label = 1, "validation_losses", "validation loss (nats)"
    if metric == "accuracy":
        factor, key, label = 100, "validation_accuracies", "validation accuracy (%)"
    for number, lane in enumerate(lanes):
        figures = [math.nan if value is None else factor * value for value in lane[key]]
        look = {"linestyle": styles[number // 10 % len(styles)], "color": f"C{number % 10}"}
        if len(figures) == 1:  # nothing was tuned: a level
            left.axhline(figures[0], label=lane["name"], **look)
        else:
            left.plot(lane["values"], figures, marker=".", label=lane["name"], **look)
    left.set(xscale="log", yscale="log" if metric == "loss" else "linear", xlabel=tuned, ylabel=label)
    figure.legend(loc="outside lower center", fontsize="small", ncols=7)
    names = [lane["name"] for lane in reversed(lanes)]
    means = [100 * lane["test"] for lane in reversed(lanes)]
    margins = [100 * (lane["interval"] or 0.0) for lane in reversed(lanes)]  # none of a single seed
    right.errorbar(means, names, xerr=margins, fmt="o", capsize=3)
    if reference is not None:
        right.axvline(means[names.index(reference)], color="grey", linestyle=":")
    right.set(xlabel="test accuracy (%), 95 % interval over seeds")
    right.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120)
