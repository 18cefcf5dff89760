"""Commands that train an experiment several times: a sweep of its options, a learning curve."""

import dataclasses
import functools
import inspect
import shlex
from collections.abc import Callable
from typing import Literal

from dl.cli.command import Call
from dl.cli.options import StudyOptions, named, parse_value, to_words
from dl.cli.run_commands import show
from dl.cli.space import parse_space
from dl.errors import UserError
from dl.experiment import Experiment
from dl.option_types import Options, PositiveFloat, PositiveInt, Seed
from dl.runs.command_line import this_command
from dl.runs.provenance import module_name
from dl.sharding import make_mesh_of
from dl.studies.folder import is_same, plain
from dl.studies.search import Interval, Method
from dl.system.claims import EXPIRY


@dataclasses.dataclass(frozen=True)
class SweepOptions(StudyOptions):
    """Options of `sweep`.

    Attributes:
      method: Search method. grid: all combinations. random: independent draws. halving: many random trials,
        of which the best third starts again from the beginning with three times the epochs. tpe: each trial
        is drawn near earlier good trials (needs Optuna).
      num_trials: Number of trials. With halving: number of trials in the first round. Default: 20 (grid: all
        combinations).
      metric: Metric that ranks the trials, written SPLIT.NAME. The test split is refused.
      mode: Whether the smallest (min) or the largest (max) value of the metric is best. Default: the metric
        itself defines this.
      together: Largest number of trials that are trained in one program. 1: trials are trained one by one.
      search_seed: Random seed of the search.
      worker: Share the trials with other processes that run the same command, on this or other machines. All
        need the same --workdir, on a file system that they share. Each process ends when all trials are done.
      lease: Number of seconds without a sign of life after which the trial of a worker is taken over by
        another worker.
    """

    method: Method = "random"
    num_trials: PositiveInt | None = None
    metric: str = "validation.loss"
    mode: Literal["min", "max"] | None = None
    together: PositiveInt = 16
    search_seed: Seed = 0
    worker: bool = False
    lease: PositiveFloat = EXPIRY


def run_sweep(call: Call) -> int:
    """Searches the options of an experiment for the best value of a validation metric.

    The options to search come first: NAME=A,B,C lists values, NAME=LOW:HIGH is a range, NAME=log:LOW:HIGH is
    a range on a logarithmic scale. For a grid, write the number of values at the end of a range, as in
    NAME=log:LOW:HIGH:5. To give an option the same value in every trial, write --NAME VALUE.
    """
    from dl.studies.sweep import sweep  # the loop, orbax

    own: SweepOptions = call.own
    space = parse_space(call.words, functools.partial(parse_value, call.experiment_fn))
    if twice := space.keys() & named(call.argv):
        raise UserError(f"{twice.pop()} is searched and given a value too; choose one")
    found = sweep(
        call.experiment_fn,
        space,
        {name: value for name, value in call.options.items() if name not in space},
        method=own.method,
        num_trials=own.num_trials,
        metric=own.metric,
        mode=own.mode,
        folder=own.workdir,
        mesh=make_mesh_of(own.mesh),
        together=own.together,
        search_seed=own.search_seed,
        is_worker=own.worker,
        lease=own.lease,
        resume_command=lambda folder: this_command("dl", folder, call.argv),
    )
    lines = [
        *found.lines,
        "The best of many trials looks better than it is. This command measures it on the test split:",
        f"  {_command(call.experiment_fn, found.best_options)}",
    ]
    show([found.table], lines)
    return 0


def _command(experiment_fn: Callable[..., Experiment], options: Options) -> str:
    """Returns the command line that runs an experiment with options: those that are not its defaults."""
    words = []
    for name, parameter in inspect.signature(experiment_fn).parameters.items():
        value, default = options[name], parameter.default
        if not is_same(plain({name: value}), plain({name: default})):
            words += to_words(name, value, isinstance(default, bool))
    return shlex.join(["python", "-m", module_name(experiment_fn), *words])


@dataclasses.dataclass(frozen=True)
class CurveOptions(StudyOptions):
    """Options of `learning-curve`.

    Attributes:
      fractions: At least three fractions of the training split, with commas between them. Default:
        0.05,0.1,0.2,0.5,1.
      over: Option that changes the size of the model, with at least three values, such as hidden=16,32,64 or
        hidden=log:16:256:5. The curve then shows the error against the number of trained parameters.
        Default: against the number of training examples.
      metric: Metric for the error axis. It is measured on the test split, or on the validation split if there
        is no test split. If large values of the metric are good, the curve shows 1 - metric. Default:
        accuracy if it is measured, else loss.
      mode: Whether the smallest (min) or the largest (max) value of the metric is best. Default: the metric
        itself defines this.
      num_seeds: Number of runs of each size (at least two), trained in one program.
    """

    fractions: str | None = None
    over: str | None = None
    metric: str | None = None
    mode: Literal["min", "max"] | None = None
    num_seeds: PositiveInt = 3


def run_curve(call: Call) -> int:
    """Trains with more and more of the data, or larger and larger models, and fits a power law to the error.

    It then predicts the error at twice the largest size, with an interval. If the power law does not fit,
    there is no prediction. The interval shows only how much the runs vary.
    """
    from dl.studies.learning_curve import learning_curve  # the loop, orbax

    own: CurveOptions = call.own
    options = call.options
    over = None
    if own.over is not None:
        if own.fractions is not None:
            raise UserError("--fractions and --over were both given; use only one of them")
        over = parse_space([own.over], functools.partial(parse_value, call.experiment_fn))
        [(name, dimension)] = over.items()
        if name in named(call.argv):
            raise UserError(f"{name} takes the values of --over and is given another too; choose one")
        if isinstance(dimension, Interval) and dimension.num is None:
            raise UserError(f"--over {own.over!r} is a range; add the number of values, as in {own.over}:5")
        options = {key: value for key, value in options.items() if key != name}
    found = learning_curve(
        call.experiment_fn,
        options,
        fractions=None if own.fractions is None else _fractions(own.fractions),
        over=over,
        metric=own.metric,
        mode=own.mode,
        num_seeds=own.num_seeds,
        folder=own.workdir,
        mesh=make_mesh_of(own.mesh),
        resume_command=lambda folder: this_command("dl", folder, call.argv),
    )
    show([found.table], found.lines)
    return 0


def _fractions(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(
            f"--fractions {text!r} is not understood; write numbers with commas between them"
        ) from None
