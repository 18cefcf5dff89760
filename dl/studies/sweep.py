"""`python -m dl sweep EXPERIMENT …`: trains an experiment with many options and chooses by validation.

Each trial is a run's folder, and all that has finished stands in sweep.json: the same command goes on. The
test split is never read. Trials of a grid or a random search that differ in numbers of the optimizer alone,
or in their seeds, are trained in one program.
"""

import dataclasses
import functools
import inspect
import itertools
import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from dl.cli.options import named, parse, parse_value, to_words
from dl.errors import UserError
from dl.experiment import Experiment
from dl.option_types import Options, PositiveInt, Seed
from dl.runs.console import Console
from dl.runs.folder import this_command
from dl.runs.provenance import code_of, module_name
from dl.runs.tables import Table
from dl.sharding import make_mesh_of
from dl.stopping import KeepBest
from dl.studies.folder import Kind, is_same, open_study, plain, usable
from dl.studies.probe import Probe, without_test
from dl.studies.search import Space, Tpe, grid_points, parse_space, random_points, rungs
from dl.studies.sweep_tables import plot, table_of
from dl.studies.trials import Row, Trials

PROG = "python -m dl sweep"
SWEEP = Kind("sweep", "sweep.json", ("trial-*", "sweep.md", "sweep.png"))
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
      mode: whether the smallest (min) or the largest value (max) of the metric is best. None: what the metric
        states for itself.
      workdir: the folder of the sweep; the same folder again goes on. None: runs/NAME-sweep-TIME.
      data_dir: the folder of prepared data sets. None: $TFDS_DATA_DIR, else ~/tensorflow_datasets.
      mesh: device axes, such as data=8. None: all devices on data.
      together: trials at most that are trained in one program; 1: one by one.
      search_seed: of the draws.
    """

    method: Literal["random", "grid", "halving", "tpe"] = "random"
    num_trials: PositiveInt | None = None
    metric: str = "validation.loss"
    mode: Literal["min", "max"] | None = None
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
    rule = _rule(how.metric, how.mode)
    if how.data_dir is not None:
        os.environ["TFDS_DATA_DIR"] = str(how.data_dir)
    search = _Search.of(space, fixed, how)
    mesh = make_mesh_of(how.mesh)
    probe = Probe(functools.partial(without_test, experiment_fn), fixed, space, rule)
    if probe.notice:
        Console().box("NOT THE DATA YOU MAY EXPECT", probe.notice)
    header = {
        "experiment": name,
        "code": code_of(experiment_fn),
        "options": {key: value for key, value in fixed.items() if key not in space},
        "space": {key: dataclasses.asdict(dimension) for key, dimension in space.items()},
        "method": how.method,
        "metric": how.metric,
        "mode": probe.rule.mode,
        "search_seed": how.search_seed,
        # Other methods go on where more trials are asked for.
        "num_trials": search.num_trials if how.method == "halving" else None,
    }
    with open_study(SWEEP, how.workdir, f"{name.rpartition('.')[2]}-sweep") as study:
        resume = this_command("dl", study.folder)
        trials = Trials(experiment_fn, fixed, probe, study, header, mesh, how.together, resume)
        search.run(trials, probe.rule)
        return _conclude(trials, probe, experiment_fn, search.budget_option)


@dataclasses.dataclass(frozen=True)
class _Search:
    """Which points are tried, judged before the first is.

    Attributes:
      method: of the search.
      space: that is searched.
      seed: of the draws.
      num_trials: of a grid all its points; of halving those of the first rung.
      budget_option: what halving divides; None of other methods.
      budget: of the last rung.
    """

    method: str
    space: Space
    seed: int
    num_trials: int
    budget_option: str | None = None
    budget: int = 0

    @classmethod
    def of(cls, space: Space, fixed: Options, how: SweepOptions) -> "_Search":
        """Raises UserError where the method cannot search this space."""
        num_trials = how.num_trials or NUM_TRIALS
        if how.method == "grid":
            size = len(grid_points(space))
            if how.num_trials not in (None, size):
                raise UserError(
                    f"--num-trials {how.num_trials} is not for a grid, and this one has {size} trials; "
                    "leave it out, or choose --method random"
                )
            return cls(how.method, space, how.search_seed, size)
        if how.method == "tpe":
            Tpe(space, how.search_seed, 1.0)  # or Optuna is missing
        if how.method != "halving":
            return cls(how.method, space, how.search_seed, num_trials)
        option = next((name for name in BUDGETS if name in fixed), None)
        if option is None or option in space:
            raise UserError(
                f"halving divides {' or '.join(BUDGETS)}, which must be an option of the experiment that is "
                "not searched; choose another --method"
            )
        if not fixed[option]:
            flag = "--" + option.replace("_", "-")
            raise UserError(f"halving needs the budget of its last rung; give {flag} a value")
        return cls(how.method, space, how.search_seed, num_trials, option, fixed[option])

    def run(self, trials: Trials, rule: KeepBest) -> None:
        if self.method == "grid":
            trials.run(grid_points(self.space), are_independent=True)
        elif self.method == "random":
            trials.run(random_points(self.space, self.num_trials, self.seed), are_independent=True)
        elif self.method == "halving":
            self._halve(trials, rule)
        else:
            for point, tell in Tpe(self.space, self.seed, rule.sign).points(self.num_trials):
                [row] = trials.run([point])
                tell(row["value"])

    def _halve(self, trials: Trials, rule: KeepBest) -> None:
        """Successive halving: the best third of a rung is trained anew with three times the budget."""
        assert self.budget_option is not None
        plan = rungs(self.num_trials, self.budget)
        said = ", ".join(f"{num} trials with {budget}" for num, budget in plan)
        print(f"halving {self.budget_option}: {said}", flush=True)
        points = random_points(self.space, self.num_trials, self.seed)
        for num, budget in plan:
            rows = trials.run([{**point, self.budget_option: budget} for point in points[:num]])
            ranked = sorted(zip(rows, points, strict=False), key=lambda pair: _badness(pair[0], rule))
            points = [point for _, point in ranked]


def _conclude(
    trials: Trials, probe: Probe, experiment_fn: Callable[..., Experiment], budget_option: str | None
) -> tuple[Table, str]:
    folder, rows, rule = trials.folder, trials.rows, probe.rule
    finished = [row for row in rows if row["value"] is not None]
    if not finished:
        if trials.defect is not None:  # of the code, as it seems: its traceback says where
            raise trials.defect
        raise UserError(f"all {len(rows)} trials failed, the first with: {rows[0]['error']}")

    def rank(row: Row) -> tuple[bool, float, float]:
        # After halving only trials with the same budget are comparable.
        budget = row["options"][budget_option] if budget_option else 0
        has_failed, badness = _badness(row, rule)
        return has_failed, -budget, badness

    ranked = sorted(rows, key=rank)
    metric = f"{rule.split} {rule.metric}"
    table = table_of(ranked, metric)
    with usable(folder):
        (folder / "sweep.md").write_text(table.to_markdown() + "\n", encoding="utf-8")
        plot(rows, trials.header["space"], metric, rule.sign).savefig(folder / "sweep.png", dpi=120)
    best = ranked[0]
    note = f" NOTE: {probe.notice.splitlines()[0]}" if probe.notice else ""
    return table, (
        f"best_{rule.split}_{rule.metric}={best['value']:.6g} trial={best['trial']} trials={len(rows)} "
        f"failed={len(rows) - len(finished)} sweep={folder}{note}\n"
        "the best of many looks better than it is; the test split says how good:\n"
        f"  {_command(experiment_fn, trials.options(best['trial']))}"
    )


def _command(experiment_fn: Callable[..., Experiment], options: Options) -> str:
    """Returns the command line that runs an experiment with options: those that are not its defaults."""
    words = []
    for name, parameter in inspect.signature(experiment_fn).parameters.items():
        value, default = options[name], parameter.default
        if not is_same(plain({name: value}), plain({name: default})):
            words += to_words(name, value, isinstance(default, bool))
    return shlex.join(["python", "-m", module_name(experiment_fn), *words])


def _rule(metric: str, mode: Literal["min", "max"] | None) -> KeepBest:
    split, dot, name = metric.partition(".")
    if not dot or not name:
        raise UserError(f"metric={metric!r} is not understood; write SPLIT.NAME, such as validation.loss")
    return KeepBest(metric=name, split=split, mode=mode)


def _badness(row: Row, rule: KeepBest) -> tuple[bool, float]:
    value = row["value"]
    return value is None, 0.0 if value is None else -rule.sign * value
