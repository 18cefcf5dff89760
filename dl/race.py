"""A fair race: every contestant is tuned with the same budget, then measured with fresh seeds.

The number that is tuned takes the same values for all, several seeds each, all in one program. The mean
validation loss chooses; the test split is read by the runs with fresh seeds only.
"""

import dataclasses
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from dl.command import code_of, make_mesh_of, module_name, run_as_command
from dl.console import Console
from dl.data.splits import ChangedSplits, Splits
from dl.errors import UserError
from dl.evaluation.intervals import t_interval
from dl.experiment import Experiment
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
    names: Sequence[str],
    tuned: str,
    values: Sequence[float],
    argv: Sequence[str] | None = None,
) -> None:
    """Reads the command line and holds the race; prints a table, writes race.json, race.md and race.png.

    Args:
      experiment_fn: as for an experiment; two of its options are the race's.
      contestants: the option that tells the contestants apart, such as `optimizer`.
      names: its values.
      tuned: the option that is tuned for each, a number that only the optimizer depends on.
      values: that it takes.
      argv: the arguments of the command line.
    """
    name = module_name(experiment_fn)

    def run() -> None:
        options, race = parse(experiment_fn, RaceOptions, argv, f"python -m {name}")
        if race.data_dir is not None:
            os.environ["TFDS_DATA_DIR"] = str(race.data_dir)
        stem = f"{name.rpartition('.')[2]}-{time.strftime('%Y%m%d-%H%M%S')}"
        folder = race.workdir or Path("runs") / stem
        resume = this_command(name, folder)
        mesh = make_mesh_of(race.mesh)
        lanes = [
            _run_lane(
                experiment_fn, {**options, contestants: lane}, lane, tuned, values, race, folder, mesh, resume
            )
            for lane in names
        ]
        lanes.sort(key=lambda lane: -lane["test"])
        table = format_table(lanes, contestants, tuned)
        write_json(folder / "race.json", {"options": as_recorded(options), "lanes": lanes})
        (folder / "race.md").write_text(table + "\n")
        plot(lanes, tuned, folder / "race.png")
        print(f"\n{table}\n\nwritten to {folder}/race.json, race.md and race.png")

    run_as_command(run)


def _run_lane(
    experiment_fn: Callable[..., Experiment],
    options: Options,
    lane: str,
    tuned: str,
    values: Sequence[float],
    race: RaceOptions,
    folder: Path,
    mesh: Mesh,
    resume: str,
) -> dict[str, Any]:
    """Returns the row of one contestant."""
    first = options.get("seed", 0)
    experiment = experiment_fn(**options)

    def train_members(
        part: str, seeds: Sequence[int], numbers: Sequence[float], data: Splits
    ) -> dict[str, Any]:
        grid = [(seed, number) for number in numbers for seed in seeds]
        members = Members(
            tuple(seed for seed, _ in grid),
            {tuned: tuple(number for _, number in grid)},
            lambda own: experiment_fn(**{**options, **own}).tx,
        )
        recorded = {**options, "members": [members.describe(k) for k in range(len(members))]}
        name, code = module_name(experiment_fn), code_of(experiment_fn)
        run = Run(folder / f"{part}-{lane}", name, recorded, code, resume)
        quiet = Console(is_quiet=True)
        return train(dataclasses.replace(experiment, data=data), run, mesh, members=members, console=quiet)

    first_seeds = range(first, first + race.tuning_seeds)
    unseen = ChangedSplits(experiment.data, without=[FINAL_SPLIT])
    tuning = train_members("tune", first_seeds, values, unseen)
    curve = []
    for value in values:
        losses = [m["metrics"]["validation"]["loss"] for m in tuning["members"] if m[tuned] == value]
        # A run that diverged has no number (None where it is read from a file), and no mean with it.
        mean = math.inf if None in losses else float(np.mean(losses))
        curve.append(mean if math.isfinite(mean) else math.inf)
    best = int(np.argmin(curve))
    if math.isinf(curve[best]):
        raise UserError(f"{lane} diverges at every {tuned} of {list(values)}; let the race try lower ones")
    # Seeds that chose nothing.
    fresh = range(first + race.tuning_seeds, first + race.tuning_seeds + race.final_seeds)
    final = train_members("final", fresh, [values[best]], experiment.data)
    scores = np.array([member["metrics"][FINAL_SPLIT]["accuracy"] for member in final["members"]])
    row = {
        "name": lane,
        tuned: values[best],
        "is_at_the_edge": best in (0, len(values) - 1),
        "validation_losses": [loss if math.isfinite(loss) else None for loss in curve],
        "values": list(values),
        "test": float(scores.mean()),
        "interval": t_interval(scores).high - float(scores.mean()) if len(scores) > 1 else None,
        "scores": scores.tolist(),
        "seconds": round(tuning["seconds"] + final["seconds"], 1),
    }
    print(
        f"{lane}: {tuned}={values[best]:g}, test accuracy {row['test']:.2%} ± {_margin(row)}, "
        f"{row['seconds']} s",
        flush=True,
    )
    return row


def _margin(lane: dict[str, Any]) -> str:
    return "unknown" if lane["interval"] is None else f"{lane['interval']:.2%}"


def format_table(lanes: Sequence[dict[str, Any]], contestants: str, tuned: str) -> str:
    """Returns the rows as a Markdown table."""
    lines = [
        f"| {contestants} | {tuned} | test accuracy, mean of {len(lanes[0]['scores'])} seeds | ± 95 % |",
        "|---|---|---|---|",
    ]
    for lane in lanes:
        edge = " (edge of the range)" if lane["is_at_the_edge"] else ""
        lines.append(f"| {lane['name']} | {lane[tuned]:g}{edge} | {lane['test']:.2%} | {_margin(lane)} |")
    return "\n".join(lines).replace("%", " %").replace("95  %", "95 %")


def plot(lanes: Sequence[dict[str, Any]], tuned: str, path: Path) -> None:
    """Writes the validation loss over the tuned number, and the test accuracy with its interval."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    styles = ["-", "--", ":", "-."]
    for number, lane in enumerate(lanes):
        losses = [math.nan if loss is None else loss for loss in lane["validation_losses"]]
        style = styles[number // 10 % len(styles)]
        left.plot(lane["values"], losses, style, marker=".", label=lane["name"], color=f"C{number % 10}")
    left.set(xscale="log", yscale="log", xlabel=tuned, ylabel="validation loss (nats)")
    figure.legend(loc="outside lower center", fontsize="small", ncols=7)
    names = [lane["name"] for lane in reversed(lanes)]
    means = [100 * lane["test"] for lane in reversed(lanes)]
    margins = [100 * (lane["interval"] or 0.0) for lane in reversed(lanes)]  # none of a single seed
    right.errorbar(means, names, xerr=margins, fmt="o", capsize=3)
    right.set(xlabel="test accuracy (%), 95 % interval over seeds")
    right.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120)
