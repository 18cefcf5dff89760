"""`train`: from an experiment to its result. It opens the run, builds the program and starts or resumes."""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dl.checkpoint import Checkpoints
from dl.console import Console
from dl.data.pipeline import Batches
from dl.data.recorded import record_of
from dl.digest import tree_digest
from dl.errors import UserError
from dl.experiment import Experiment
from dl.initial import Context, check_fits
from dl.inputs import check_labels, describe_input, make_batches
from dl.members import Members
from dl.predictions import Disagreement
from dl.program import Program
from dl.run import Run
from dl.selection import FINAL_SPLIT, look_up
from dl.session import Session
from dl.signals import StopSignals
from dl.summary import final_line, introduce
from dl.types import Variables


def train(
    experiment: Experiment,
    run: Run,
    mesh: Mesh,
    *,
    log_every: int = 10,
    save_every: float = 30.0,
    members: Members | None = None,
    debug_nans: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Trains from the newest checkpoint of the run's folder, or from the start, to the end.

    Args:
      experiment: what to compute.
      run: the folder; a finished run is not repeated.
      mesh: the devices. A run may go on with another mesh than it began with.
      log_every: steps between two lines of metrics.
      save_every: seconds between two checkpoints.
      members: runs of the experiment that are trained at the same time; None: just the experiment.
      debug_nans: end at the first NaN with the operation that made it; see `nans.report_nans`.
      console: where a person watches.

    Returns:
      The content of result.json.

    Raises:
      UserError: a mistake in the options or the data, a folder that holds another run, or a loss that is
        no number any more.
      Stopped: SIGINT or SIGTERM arrived; the state was saved.
    """
    console = console or Console()
    with contextlib.ExitStack() as stack:
        if debug_nans and members is not None:
            raise UserError("debug_nans follows one run; leave --num-seeds out")
        batches = make_batches(experiment, mesh, None if members is None else members.seeds)
        facts = _facts(experiment)
        run.check(facts)
        if run.result is not None:
            console.line(f"finished before: {final_line(run.result, run)}")
            return _agreeing(run.result)
        check_labels(experiment, batches)
        program = Program(experiment, mesh, batches, members)
        experiment = _with_directions(experiment, batches, program)
        start = _start(experiment, program, run, mesh)
        if start is not None:
            facts["initial"] = tree_digest(start)
            run.check(facts)
        introduce(console, experiment, run, mesh, program.facts, members)
        if note := describe_input(experiment):
            console.line(note)
        run.open({**facts, **program.facts}, mesh)
        stack.callback(run.close)
        stop = stack.enter_context(StopSignals())
        console.start(experiment.num_steps)
        stack.callback(console.stop)
        checkpoints = Checkpoints(run.checkpoints_path)
        stack.callback(checkpoints.close)
        session = Session(experiment, run, program, batches, checkpoints, console, stop, members)
        stack.callback(session.close)
        session.restore(start)
        session.run_to_end(log_every, save_every, debug_nans)
        result = session.result(mesh)
        run.finish(result)
        console.line(final_line(result, run))
        return _agreeing(result)


def _agreeing(result: dict[str, Any]) -> dict[str, Any]:
    """Returns a result whose predictions agree with what was measured; it is stored either way."""
    if "disagreement" in result:
        raise Disagreement(result["disagreement"])
    return result


def restore_variables(experiment: Experiment, run: Run, mesh: Mesh) -> Variables:
    """Returns the variables that a finished run ended with, as arrays on the devices.

    Raises:
      UserError: there is no intact checkpoint.
    """
    program = Program(experiment, mesh, make_batches(experiment, mesh))
    checkpoints = Checkpoints(run.checkpoints_path)
    try:
        restored = checkpoints.restore(program.abstract_state)
    finally:
        checkpoints.close()
    if restored is None:
        raise UserError(f"{run.folder} has no checkpoint to read the parameters from; train it again")
    state, _ = restored
    return state.eval_variables if state.best is None else state.best


def _facts(experiment: Experiment) -> dict[str, Any]:
    data = experiment.data
    return {
        "dataset": dataclasses.asdict(data.identity),
        "data": record_of(data),
        "notice": data.notice,
    }


def _with_directions(experiment: Experiment, batches: Mapping[str, Batches], program: Program) -> Experiment:
    """Returns the experiment whose rules state what is better, as their metrics do.

    Raises:
      UserError: a rule could only fail after the first report, or nothing states what is better.
    """
    known = {
        name: program.train_metrics if name == "train" else program.metrics
        for name in batches
        if name != FINAL_SPLIT
    }
    figures = {split: dict.fromkeys(metrics, np.zeros(())) for split, metrics in known.items()}
    rules = {"keep_best": experiment.keep_best, "target": experiment.target}
    resolved = {}
    for name, rule in rules.items():
        if rule is not None:
            look_up(figures, rule.split, rule.metric)
            resolved[name] = rule.resolved(known[rule.split])
    return dataclasses.replace(experiment, **resolved)


def _start(experiment: Experiment, program: Program, run: Run, mesh: Mesh) -> Variables | None:
    """Returns the variables that the run starts from, on the host; None: all are initialised."""
    if experiment.initial is None:
        return None
    shapes = {"params": program.abstract_state.params, **program.abstract_state.model_state}
    start = jax.device_get(experiment.initial(Context(shapes, run.folder, mesh)))
    check_fits(start, shapes)
    return start
