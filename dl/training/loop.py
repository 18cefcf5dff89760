"""`train`: from an experiment to its result. It opens the run, builds the program and starts or resumes."""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dl.data.pipeline import Batches
from dl.data.recorded import record_of
from dl.errors import UserError
from dl.experiment import Experiment
from dl.runs.console import Console
from dl.runs.digest import tree_digest
from dl.runs.folder import Run
from dl.runs.log import MetricsLog
from dl.runs.predictions import Disagreement
from dl.runs.provenance import numerics
from dl.stopping import FINAL_SPLIT, look_up
from dl.training.batches import check_labels, describe_input, make_batches
from dl.training.checkpoint import Checkpoints
from dl.training.identity import describe
from dl.training.population import SINGLE, Population, Single
from dl.training.profiler import Profiler
from dl.training.program import Program
from dl.training.session import Session
from dl.training.signals import StopSignals
from dl.training.start import find_start
from dl.training.state import TrainState
from dl.training.summary import final_line, introduce
from dl.types import Variables
from dl.warm_start import Context, check_fits


def train(
    experiment: Experiment,
    run: Run,
    mesh: Mesh,
    *,
    log_every: int = 10,
    save_every: float = 30.0,
    population: Population | Single = SINGLE,
    debug_nans: bool = False,
    profile: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Trains from the newest checkpoint of the run's folder, or from the start, to the end.

    Args:
      experiment: what to compute.
      run: the folder; a finished run is not repeated.
      mesh: the devices. A run may go on with another mesh than it began with.
      log_every: steps between two lines of metrics.
      save_every: seconds between two checkpoints.
      population: runs of the experiment that are trained at the same time; by default the experiment alone.
      debug_nans: end at the first NaN with the operation that made it; see `nans.report_nans`.
      profile: trace a few steps into the folder `profile` of the run; see `profiling.Profiler`.
      console: where a person watches.

    Returns:
      The content of result.json.

    Raises:
      UserError: a mistake in the options or the data, a folder that holds another run, or a loss that is
        no number any more.
      StorageError: the state cannot be saved; what was saved before stands.
      Stopped: a signal asked for it, such as SIGINT or SIGTERM; the state was saved.
    """
    console = console or Console()
    with contextlib.ExitStack() as stack:
        stack.callback(run.close)
        if debug_nans and isinstance(population, Population):
            raise UserError("debug_nans follows one run; leave --num-seeds out")
        batches = make_batches(experiment, mesh, population)
        facts = _facts(experiment, population)
        run.check(facts)
        if run.is_begun and (result := run.result) is not None:
            run.tidy()
            for damage in run.damages():
                console.line(damage)
            console.line(f"finished before: {final_line(result, run)}")
            return _agreeing(result)
        check_labels(experiment, batches)
        program = Program(experiment, mesh, batches, population)
        experiment = _with_directions(experiment, batches, program)
        start = _start(experiment, program, run, mesh)
        if start is not None:
            facts["initial"] = tree_digest(start)
            run.check(facts)
        introduce(console, experiment, run, mesh, program.facts, population)
        if note := describe_input(experiment):
            console.line(note)
        run.open({**facts, **program.facts}, mesh)
        if (result := run.result) is not None:  # another process has finished it meanwhile
            console.line(f"finished before: {final_line(result, run)}")
            return result
        stop = stack.enter_context(StopSignals())
        console.start(experiment.num_steps)
        stack.callback(console.stop)
        checkpoints = stack.enter_context(Checkpoints(run.checkpoints_path, identity=run.identity))
        begin = find_start(program, checkpoints, start, console)
        log = MetricsLog(run.metrics_path, begin.progress.log_size, begin.step, begin.progress.log_digest)
        stack.callback(log.close)
        with begin.progress.compiling.running():
            steps = program.compile()
        console.line(f"compiled in {steps.seconds:.1f} s")
        session = Session(experiment, run, program, steps, batches, begin, log, checkpoints, console, stop)
        profiler = Profiler(run.folder / "profile", console)
        stack.callback(profiler.close)
        session.run_to_end(log_every, save_every, debug_nans, profiler if profile else None)
        result = session.result()
        with run.in_place():
            checkpoints.wait()  # a result promises its parameters
        result = run.finish(result)
        console.line(final_line(result, run))
        return _agreeing(result)


def _agreeing(result: dict[str, Any]) -> dict[str, Any]:
    """Returns a result whose predictions agree with what was measured; it is stored either way."""
    if "disagreement" in result:
        raise Disagreement(result["disagreement"])
    return result


def restore_variables(experiment: Experiment, run: Run, mesh: Mesh) -> Variables:
    """Returns the variables that a finished run ended with, as arrays on the devices; the disk is only read.

    Raises:
      UserError: there is no intact checkpoint, or none that the result is of.
    """
    program = Program(experiment, mesh, make_batches(experiment, mesh))
    expected = (run.result or {}).get("params_digest")

    def variables_of(state: TrainState) -> Variables:
        return program.eval_variables(state) if state.best is None else state.best

    def trouble_with(state: TrainState) -> str:
        if expected is None or tree_digest(variables_of(state)["params"]) == expected:
            return ""
        return "its parameters are not those that the result is of"

    if not run.checkpoints_path.is_dir():
        raise UserError(f"{run.folder} has no checkpoint to read the parameters from; train it again")
    with Checkpoints(run.checkpoints_path, identity=run.identity, is_read_only=True) as checkpoints:
        restored = checkpoints.restore(program.abstract_state, trouble_with)
    if restored is None:
        raise UserError(f"{run.folder} has no checkpoint to read the parameters from; train it again")
    return variables_of(restored[0])


def _facts(experiment: Experiment, population: Population | Single) -> dict[str, Any]:
    data = experiment.data
    return {
        "dataset": dataclasses.asdict(data.identity),
        "data": record_of(data),
        "notice": data.notice,
        # As the experiment made them of its options, which may have left them open.
        "num_steps": experiment.num_steps,
        "batch_size": experiment.batch_size,
        "numerics": numerics(),
        **describe(experiment, population),
    }


def _with_directions(experiment: Experiment, batches: Mapping[str, Batches], program: Program) -> Experiment:
    """Returns the experiment whose rules state what is better, as their metrics do.

    Raises:
      UserError: a rule could only fail after the first evaluation, or nothing states what is better.
    """
    known = {
        name: program.train_metrics if name == "train" else program.metrics
        for name in batches
        if name != FINAL_SPLIT
    }
    metrics = {split: dict.fromkeys(of_split, np.zeros(())) for split, of_split in known.items()}
    rules = {"keep_best": experiment.keep_best, "stop_at": experiment.stop_at}
    resolved = {}
    for name, rule in rules.items():
        if rule is not None:
            look_up(metrics, rule.split, rule.metric)
            resolved[name] = rule.resolved(known[rule.split])
    return dataclasses.replace(experiment, **resolved)


def _start(experiment: Experiment, program: Program, run: Run, mesh: Mesh) -> Variables | None:
    """Returns the variables that the run starts from, on the host; None: all are initialised."""
    if experiment.warm_start is None:
        return None
    shapes = {"params": program.abstract_state.params, **program.abstract_state.model_state}
    start = jax.device_get(experiment.warm_start(Context(shapes, run.folder, mesh)))
    check_fits(start, shapes)
    return start
