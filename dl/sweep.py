"""`python -m dl sweep EXPERIMENT …`: trains an experiment with many options and chooses by validation.

Each trial is a run's folder, and all that has finished stands in sweep.json: the same command goes on. The
test split is never read. Trials of a grid or a random search that differ in numbers of the optimizer alone,
or in their seeds, are trained in one program.
"""

import dataclasses
import functools
import itertools
import os
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from dl.command import code_of, make_mesh_of, module_name
from dl.errors import UserError
from dl.experiment import Experiment
from dl.options import Options, PositiveInt, Seed, named, parse, parse_value
from dl.run import this_command
from dl.search import Space, Tpe, grid_points, parse_space, random_points, rungs
from dl.selection import KeepBest
from dl.sweep_report import plot, table_of
from dl.tables import Table
from dl.trials import Row, Trials

PROG = "python -m dl sweep"
NUM_TRIALS = 20
BUDGETS = ("num_epochs", "num_steps")  # the first of them that the experiment has is what halving divides


@dataclasses.dataclass(frozen=True)
class SweepOptions:
    """How options are searched, and where.

    Attributes:
      method: grid (all combinations), random, halving (many random trials, a third of them goes on with three
        times the epochs), or tpe (by Optuna: each trial where the ones before were good).
      num_trials: of random and tpe, and of the first rung of halving. None: 20.
      metric: what is best, SPLIT.NAME; never of test.
      workdir: the folder of the sweep; the same folder again goes on. None: runs/NAME-sweep-TIME.
      data_dir: the folder of prepared data sets. None: $TFDS_DATA_DIR, else ~/tensorflow_datasets.
      mesh: device axes, such as data=8. None: all devices on data.
      together: trials at most that are trained in one program; 1: one by one.
      search_seed: of the draws.
    """

    method: Literal["random", "grid", "halving", "tpe"] = "random"
    num_trials: PositiveInt | None = None
    metric: str = "validation.loss"
    workdir: Path | None = None
    data_dir: Path | None = None
    mesh: str | None = None
    together: PositiveInt = 16
    search_seed: Seed = 0


def sweep_options(experiment_fn: Callable[..., Experiment] | None, argv: Sequence[str]) -> tuple[Table, str]:
    """Searches the options of an experiment for the best value of a validation metric.

    First the options to search: NAME=A,B,C lists values, NAME=LOW:HIGH and NAME=log:LOW:HIGH are ranges, in a
    grid with the number of values behind, NAME=log:LOW:HIGH:5. Options as --NAME VALUE hold for every trial.

    Returns:
      The table of all trials, the best first, and a line about the best.

    Raises:
      UserError: a mistake in the arguments, or all trials have failed.
    """
    words = list(itertools.takewhile(lambda word: not word.startswith("-"), argv))
    rest = argv[len(words) :]
    about = " ".join((sweep_options.__doc__ or "").partition("Returns:")[0].split())
    if experiment_fn is None:
        if rest and rest[0] in ("-h", "--help"):
            parse(lambda: None, SweepOptions, rest, f"{PROG} EXPERIMENT NAME=VALUES …", about)
        raise UserError(f"sweep needs an experiment first: {PROG} NAME learning_rate=log:1e-4:1e-1")
    name = module_name(experiment_fn)
    fixed, how = parse(experiment_fn, SweepOptions, rest, f"{PROG} {name} NAME=VALUES …", about)
    space = parse_space(words, functools.partial(parse_value, experiment_fn))
    if twice := space.keys() & named(rest):
        raise UserError(f"{twice.pop()} is searched and given a value too; choose one")
    rule = _rule(how.metric)
    if how.data_dir is not None:
        os.environ["TFDS_DATA_DIR"] = str(how.data_dir)
    stem = f"{name.rpartition('.')[2]}-sweep-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = how.workdir or Path("runs") / stem
    resume = this_command("dl", folder)
    trials = Trials(experiment_fn, fixed, rule, folder, make_mesh_of(how.mesh), how.together, resume)
    trials.check_metric(space)
    num_trials = how.num_trials or NUM_TRIALS
    budget_option = None
    trials.open(
        {
            "experiment": name,
            "code": code_of(experiment_fn),
            "options": {key: value for key, value in fixed.items() if key not in space},
            "space": {key: dataclasses.asdict(dimension) for key, dimension in space.items()},
            "method": how.method,
            "metric": how.metric,
            "search_seed": how.search_seed,
            # Other methods go on where more trials are asked for.
            "num_trials": num_trials if how.method == "halving" else None,
        }
    )
    if how.method == "grid":
        points = grid_points(space)
        if how.num_trials not in (None, len(points)):
            raise UserError(
                f"--num-trials {how.num_trials} is not for a grid, and this one has {len(points)} trials; "
                "leave it out, or choose --method random"
            )
        trials.run(points, may_share=True)
    elif how.method == "random":
        trials.run(random_points(space, num_trials, how.search_seed), may_share=True)
    elif how.method == "halving":
        budget_option = _halve(trials, space, fixed, num_trials, how.search_seed, rule)
    else:
        for point, tell in Tpe(space, how.search_seed, rule.sign).points(num_trials):
            [row] = trials.run([point])
            tell(row["value"])
    return _conclude(trials, rule, name, budget_option)


def _halve(trials: Trials, space: Space, fixed: Options, num_trials: int, seed: int, rule: KeepBest) -> str:
    """Successive halving: the best third of a rung is trained anew with three times the budget.

    Returns:
      The option that is the budget.
    """
    option = next((name for name in BUDGETS if name in fixed), None)
    if option is None or option in space:
        raise UserError(
            f"halving divides {' or '.join(BUDGETS)}, which must be an option of the experiment that is not "
            "searched; choose another --method"
        )
    if not fixed[option]:
        flag = "--" + option.replace("_", "-")
        raise UserError(f"halving needs the budget of its last rung; give {flag} a value")
    plan = rungs(num_trials, fixed[option])
    said = ", ".join(f"{num} trials with {budget}" for num, budget in plan)
    print(f"halving {option}: {said}", flush=True)
    points = random_points(space, num_trials, seed)
    for num, budget in plan:
        rows = trials.run([{**point, option: budget} for point in points[:num]])
        ranked = sorted(zip(rows, points, strict=False), key=lambda pair: _badness(pair[0], rule))
        points = [point for _, point in ranked]
    return option


def _conclude(trials: Trials, rule: KeepBest, name: str, budget_option: str | None) -> tuple[Table, str]:
    folder, rows = trials.folder, trials.rows
    finished = [row for row in rows if row["value"] is not None]
    if not finished:
        raise UserError(f"all {len(rows)} trials failed, the first with: {rows[0]['error']}")

    def rank(row: Row) -> tuple[bool, float, float]:
        # After halving only trials with the same budget are comparable.
        budget = row["options"][budget_option] if budget_option else 0
        has_failed, badness = _badness(row, rule)
        return has_failed, -budget, badness

    ranked = sorted(rows, key=rank)
    metric = f"{rule.split} {rule.metric}"
    table = table_of(ranked, metric)
    (folder / "sweep.md").write_text(table.to_markdown() + "\n", encoding="utf-8")
    plot(rows, trials.header["space"], metric, rule.sign).savefig(folder / "sweep.png", dpi=120)
    best = ranked[0]
    values = {**trials.header["options"], **best["options"]}
    changed = [
        f"--{key.replace('_', '-')}={value}" if not isinstance(value, bool) else _flag(key, value)
        for key, value in values.items()
        if value != trials.defaults[key]
    ]
    note = f" NOTE: {trials.notice.splitlines()[0]}" if trials.notice else ""
    return table, (
        f"best_{rule.split}_{rule.metric}={best['value']:.6g} trial={best['trial']} trials={len(rows)} "
        f"failed={len(rows) - len(finished)} sweep={folder}{note}\n"
        "the best of many looks better than it is; the test split says how good:\n"
        f"  {shlex.join(['python', '-m', name, *changed])}"
    )


def _rule(metric: str) -> KeepBest:
    split, dot, name = metric.partition(".")
    if not dot or not name:
        raise UserError(f"metric={metric!r} is not understood; write SPLIT.NAME, such as validation.loss")
    return KeepBest(metric=name, split=split)


def _badness(row: Row, rule: KeepBest) -> tuple[bool, float]:
    value = row["value"]
    return value is None, 0.0 if value is None else -rule.sign * value


def _flag(name: str, value: bool) -> str:
    return f"--{'' if value else 'no-'}{name.replace('_', '-')}"
