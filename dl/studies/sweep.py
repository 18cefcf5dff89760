"""A sweep: trains an experiment with many options and selects the best ones by a validation metric.

Each trial is a run with a folder, and sweep.json records the finished trials. The same call resumes the
sweep. The test split is never read. Trials of a grid or a random search that differ in hyperparameters of the
optimizer alone, or in their seeds, are trained in one program. Several workers can share a sweep.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from dl.data.splits import short_notice
from dl.errors import UserError
from dl.experiment import Experiment
from dl.metrics import Direction
from dl.option_types import Options
from dl.runs.console import Console
from dl.runs.provenance import code_of, module_name
from dl.runs.tables import Table
from dl.sharding import make_mesh
from dl.stopping import KeepBest
from dl.studies.folder import StudyKind, open_study, usable
from dl.studies.probe import Probe, without_test
from dl.studies.rows import Row
from dl.studies.runs import ResumeCommand, StudyRuns, check_options, resume_line, with_defaults
from dl.studies.search import Dimension, Method, Space, Tpe, as_space, grid_points, random_points, rungs
from dl.studies.sweep_tables import plot, table_of
from dl.studies.trials import Trials
from dl.studies.workers import CLAIMS, Worker, refuse_workers
from dl.system.claims import EXPIRY

SWEEP = StudyKind("sweep", "sweep.json", ("trial-*", "sweep.md", "sweep.png", CLAIMS))
NUM_TRIALS = 20
# Successive halving divides the first of these options that the experiment has.
BUDGETS = ("num_epochs", "num_steps")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The result of a sweep.

    Attributes:
      folder: the folder with its runs, sweep.json, sweep.md and sweep.png.
      rows: one for each trial, the best first: `trial`, `options`, `value` of the metric (None if it failed),
        `metrics`, `error`, `folder`, and `member` where several trials share a run.
      best_options: all options of the best trial, as the experiment takes them.
      split: the split that the metric is measured on.
      metric: the metric that ranks the trials.
      notice: what the user must know about the data. `None` means that there is nothing to know.
    """

    folder: Path
    rows: Sequence[Row]
    best_options: Options
    split: str
    metric: str
    notice: str | None

    @property
    def best(self) -> Row:
        """The row of the best trial."""
        return self.rows[0]

    @property
    def table(self) -> Table:
        """The trials, the best first; of very many only the first ones."""
        return table_of(self.rows, f"{self.split} {self.metric}")

    @property
    def lines(self) -> list[str]:
        """Lines about the best trial, each as `name=value`."""
        num_failed = sum(row["value"] is None for row in self.rows)
        note = f" NOTE: {short_notice(self.notice)}" if self.notice else ""
        return [
            f"best_{self.split}_{self.metric}={self.best['value']:.6g} trial={self.best['trial']} "
            f"trials={len(self.rows)} failed={num_failed} sweep={self.folder}{note}"
        ]


def sweep(
    experiment_fn: Callable[..., Experiment],
    space: Mapping[str, Dimension | Sequence[Any]],
    options: Mapping[str, Any] | None = None,
    *,
    method: Method = "random",
    num_trials: int | None = None,
    metric: str = "validation.loss",
    mode: Direction | None = None,
    folder: Path | None = None,
    mesh: Mesh | None = None,
    together: int = 16,
    search_seed: int = 0,
    is_worker: bool = False,
    lease: float = EXPIRY,
    console: Console | None = None,
    resume_command: ResumeCommand | None = None,
) -> Sweep:
    """Searches the options of an experiment for the best value of a validation metric.

    Args:
      experiment_fn: the function of the experiment.
      space: for each searched option, its values or an `Interval`.
      options: the options of all trials. An option that is left out has its default.
      method: grid (all combinations), random (Bergstra & Bengio 2012), halving (Jamieson & Talwalkar 2016:
        many random trials, of which the best third is trained again with three times the epochs), or tpe
        (Bergstra et al. 2011, by Optuna: each trial where the ones before were good).
      num_trials: number of trials of random and tpe, and of the first rung of halving. `None` means 20.
      metric: the metric that ranks the trials, as SPLIT.NAME. The test split is refused.
      mode: whether the smallest or the largest value is best. `None` means that the metric states it.
      folder: the folder of the study. The same folder resumes the study. `None` means a new folder,
        runs/NAME-sweep-TIME.
      mesh: the devices. `None` means all devices.
      together: the largest number of trials that are trained in one program.
      search_seed: random seed of the draws.
      is_worker: whether other processes make the same call, on this or other machines, and share the trials
        through `folder`. Each of them returns when all trials are done. The sweep of a grid, a random search
        or halving is then the same as that of one process. With tpe, a point also depends on which trials
        have finished when a worker asks for it.
      lease: number of seconds without a sign of life after which the trial of a worker is taken over.
      console: where progress is printed.
      resume_command: returns, for a folder, the command line that resumes a stopped sweep.

    Raises:
      UserError: an argument has a mistake, all trials have failed, or a trial failed because of its
        environment.
    """
    console = console or Console()
    if is_worker and folder is None:
        raise UserError("a worker needs the folder that all workers share; give --workdir FOLDER")
    space = as_space(space)
    check_options(experiment_fn, space)
    if twice := space.keys() & (options or {}).keys():
        raise UserError(f"{twice.pop()} is searched and given a value too; choose one")
    fixed = with_defaults(experiment_fn, options)
    rule = _rule(metric, mode)
    search = _Search.of(space, fixed, method, num_trials, search_seed)
    probe = Probe(lambda options: without_test(experiment_fn, options).build(), fixed, space, rule)
    console.notice(probe.notice)
    name = module_name(experiment_fn)
    header = {
        "experiment": name,
        "code": code_of(experiment_fn),
        "options": {key: value for key, value in fixed.items() if key not in space},
        "space": {key: dataclasses.asdict(dimension) for key, dimension in space.items()},
        "method": method,
        "metric": metric,
        "mode": probe.rule.mode,
        "search_seed": search_seed,
        # The other methods can add trials later.
        "num_trials": search.num_trials if method == "halving" else None,
    }
    with open_study(SWEEP, folder, f"{name.rpartition('.')[2]}-sweep", is_shared=is_worker) as study:
        worker = None
        if is_worker:
            worker = Worker(study, resume_line(study, resume_command), console, lease)
            # The other workers must find the same trials in the same programs.
            worker.agree({"num_trials": search.num_trials, "together": together, "lease": lease})
        else:
            refuse_workers(study)
        mesh = make_mesh() if mesh is None else mesh
        runs = StudyRuns(experiment_fn, study, mesh, resume_command, worker)
        trials = Trials(runs, fixed, probe, header, together, console)
        search.run(trials, probe.rule, console, is_worker)
        with trials.concluding():
            return _conclude(trials, probe, search.budget_option)


@dataclasses.dataclass(frozen=True)
class _Search:
    """The plan of a search, which is checked before the first trial.

    Attributes:
      method: the search method.
      space: the space that is searched.
      seed: random seed of the draws.
      num_trials: number of trials: all points of a grid, or those of the first rung of halving.
      budget_option: the option that halving divides. `None` for other methods.
      budget: the budget of the last rung.
    """

    method: Method
    space: Space
    seed: int
    num_trials: int
    budget_option: str | None = None
    budget: int = 0

    @classmethod
    def of(cls, space: Space, fixed: Options, method: Method, num_trials: int | None, seed: int) -> "_Search":
        """Raises UserError if the method cannot search this space."""
        if method == "grid":
            size = len(grid_points(space))
            if num_trials not in (None, size):
                raise UserError(
                    f"num_trials={num_trials} does not apply to a grid, which has {size} trials here; "
                    "leave it out, or choose the method random"
                )
            return cls(method, space, seed, size)
        if method == "tpe":
            Tpe(space, seed, 1.0)  # raises a UserError if Optuna is missing
        num_trials = num_trials or NUM_TRIALS
        if method != "halving":
            return cls(method, space, seed, num_trials)
        option = next((name for name in BUDGETS if name in fixed), None)
        if option is None or option in space:
            raise UserError(
                f"halving divides {' or '.join(BUDGETS)}, which must be an option of the experiment that is "
                "not searched; choose another method"
            )
        if not fixed[option]:
            raise UserError(f"halving needs the budget of its last round; give {option} a value")
        return cls(method, space, seed, num_trials, option, fixed[option])

    def run(self, trials: Trials, rule: KeepBest, console: Console, is_worker: bool) -> None:
        if self.method == "grid":
            trials.run(grid_points(self.space), are_independent=True)
        elif self.method == "random":
            trials.run(random_points(self.space, self.num_trials, self.seed), are_independent=True)
        elif self.method == "halving":
            self._halve(trials, rule, console)
        elif is_worker:
            trials.run_as_proposed(self.num_trials, Tpe(self.space, self.seed, rule.sign))
        else:
            for point, tell in Tpe(self.space, self.seed, rule.sign).points(self.num_trials):
                [row] = trials.run([point])
                tell(row["value"])

    def _halve(self, trials: Trials, rule: KeepBest, console: Console) -> None:
        """Successive halving: the best third of a rung is trained again with three times the budget."""
        assert self.budget_option is not None
        plan = rungs(self.num_trials, self.budget)
        said = ", ".join(f"{num} trials with {budget}" for num, budget in plan)
        console.line(f"halving {self.budget_option}: {said}")
        points = random_points(self.space, self.num_trials, self.seed)
        for num, budget in plan:
            rows = trials.run([{**point, self.budget_option: budget} for point in points[:num]])
            ranked = sorted(zip(rows, points, strict=False), key=lambda pair: _badness(pair[0], rule))
            points = [point for _, point in ranked]


def _conclude(trials: Trials, probe: Probe, budget_option: str | None) -> Sweep:
    folder, rows, rule = trials.folder, trials.rows, probe.rule
    if all(row["value"] is None for row in rows):
        if trials.defect is not None:  # a mistake in the code, which the traceback shows
            raise trials.defect
        raise UserError(f"all {len(rows)} trials failed, the first with: {rows[0]['error']}")

    def rank(row: Row) -> tuple[bool, float, float]:
        # After halving, only trials with the same budget are comparable.
        budget = row["options"][budget_option] if budget_option else 0
        has_failed, badness = _badness(row, rule)
        return has_failed, -budget, badness

    ranked = sorted(rows, key=rank)
    best_options = trials.options(ranked[0]["trial"])
    found = Sweep(folder, ranked, best_options, rule.split, rule.metric, probe.notice)
    with usable(folder):
        (folder / "sweep.md").write_text(found.table.to_markdown() + "\n", encoding="utf-8")
        figure = plot(rows, trials.header["space"], f"{rule.split} {rule.metric}", rule.sign)
        figure.savefig(folder / "sweep.png", dpi=120)
    return found


def _rule(metric: str, mode: Direction | None) -> KeepBest:
    split, dot, name = metric.partition(".")
    if not dot or not name:
        raise UserError(f"metric={metric!r} is not understood; write SPLIT.NAME, such as validation.loss")
    return KeepBest(metric=name, split=split, mode=mode)


def _badness(row: Row, rule: KeepBest) -> tuple[bool, float]:
    value = row["value"]
    return value is None, 0.0 if value is None else -rule.sign * value
