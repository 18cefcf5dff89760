"""`train`: from an experiment to its result. It opens the run, builds the program and starts or resumes."""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dl.data.pipeline import Batches
from dl.data.recorded import files_of, record_of
from dl.errors import UserError
from dl.experiment import Experiment, stored_batch
from dl.runs.baseline import baseline_lines
from dl.runs.bucket_run import run_at
from dl.runs.console import Console
from dl.runs.definition import Definition
from dl.runs.digest import tree_digest
from dl.runs.memory import MemoryRun, NoCheckpoints
from dl.runs.predictions import Disagreement
from dl.runs.provenance import numerics
from dl.runs.run import Run
from dl.sharding import make_mesh
from dl.stopping import FINAL_SPLIT, look_up
from dl.system.bucket import url_of
from dl.training import processes
from dl.training.batches import check_labels, describe_input, make_batches
from dl.training.checkpoint import Checkpoints
from dl.training.identity import describe
from dl.training.nans import report_nans
from dl.training.population import Population
from dl.training.profiler import Profiler
from dl.training.program import Program
from dl.training.result import Result
from dl.training.samples import Samples, prompts_of
from dl.training.session import Session
from dl.training.signals import StopSignals
from dl.training.single import SINGLE, Single
from dl.training.start import find_start
from dl.training.summary import final_line, introduce
from dl.types import Variables
from dl.warm_start import FromExperiment, check_fits, check_has_constants


def train(
    experiment: Experiment | Definition,
    folder: Path | str | None = None,
    *,
    mesh: Mesh | None = None,
    log_every: int = 10,
    save_every: float = 30.0,
    population: Population | Single = SINGLE,
    debug_nans: bool = False,
    profile: bool = False,
    with_baseline: bool = True,
    console: Console | None = None,
) -> Result:
    """Trains an experiment to its last step, and returns the result.

    Args:
      experiment: the experiment, or a `Definition`: the function that returns it and the options of the
        function.
      folder: the folder of the run, on a disk or gs://BUCKET/FOLDER. The same call resumes the run, or
        returns the result of a finished run. `None` means that nothing is written to disk.
      mesh: the devices. `None` means all devices, each with a part of the batch. A run may be resumed on
        another mesh.
      log_every: number of steps between two rows of training metrics.
      save_every: time between two checkpoints, in seconds.
      population: runs of the experiment that are trained at the same time. `None` means a single run.
      debug_nans: whether to stop at the first NaN and name the operation that made it. Training is slower.
      profile: whether to trace a few steps into the folder `profile` of the run.
      with_baseline: whether to compute the baseline of the experiment at the end.
      console: where progress is shown. `None` means the standard output.

    Raises:
      UserError: the experiment or the data have a mistake, the folder holds another run, or the loss is no
        longer finite.
      StorageError: the state cannot be saved. Earlier checkpoints stay intact.
      Stopped: a signal such as SIGINT or SIGTERM arrived. If there is a folder, the state was saved.
    """
    definition = Definition.of(experiment)
    run = MemoryRun(definition) if folder is None else run_at(folder, definition, _call_again)
    return train_run(
        run,
        mesh or make_mesh(),
        log_every=log_every,
        save_every=save_every,
        population=population,
        debug_nans=debug_nans,
        profile=profile,
        with_baseline=with_baseline,
        console=console,
    )


def _call_again(folder: Path) -> str:
    return f"dl.train(experiment, folder={url_of(folder) or str(folder)!r})"


def train_run(
    run: Run | MemoryRun,
    mesh: Mesh,
    *,
    log_every: int = 10,
    save_every: float = 30.0,
    population: Population | Single = SINGLE,
    debug_nans: bool = False,
    profile: bool = False,
    with_baseline: bool = True,
    console: Console | None = None,
) -> Result:
    """Trains from the newest checkpoint of a run, or from the start, to the last step.

    A finished run is not repeated. The definition of the run must describe the population. The arguments are
    those of `train`.
    """
    console = console or Console()
    with contextlib.ExitStack() as stack:
        stack.callback(run.close)
        if debug_nans and isinstance(population, Population):
            raise UserError("debug_nans examines a single run; train one seed, without --num-seeds")
        if profile and isinstance(run, MemoryRun):
            raise UserError("profile=True writes into the folder of the run; pass folder=")
        experiment = run.definition.build()
        batches = make_batches(experiment, mesh, population)
        facts = _facts(experiment, population)
        run.check(facts)
        if isinstance(run, Run) and run.is_begun and (result := run.result) is not None:
            run.tidy()
            for damage in run.damages():
                console.line(damage)
            console.line(f"finished before: {final_line(result, run)}")
            return Result(experiment, _agreeing(result), run=run, mesh=mesh)
        check_labels(experiment, batches)
        prompts = prompts_of(experiment) if population.keeps_predictions else ()
        program = Program(experiment, mesh, batches, population)
        experiment = _with_directions(experiment, batches, program)
        start = _start(experiment, run, mesh)
        if start is not None:
            facts["initial"] = tree_digest(start)
            run.check(facts)
        introduce(console, experiment, run, mesh, program.facts, population)
        for note in (describe_input(experiment), program.mesh_notice):
            if note:
                console.line(note)
        run.open({**facts, **program.facts}, mesh, files_of(experiment.data))
        if (result := run.result) is not None:  # another process has finished it meanwhile
            console.line(f"finished before: {final_line(result, run)}")
            return Result(experiment, result, run=run if isinstance(run, Run) else None, mesh=mesh)
        together = processes.current()
        together.signals = stack.enter_context(StopSignals())
        console.start(experiment.num_steps)
        stack.callback(console.stop)
        checkpoints: Checkpoints | NoCheckpoints = NoCheckpoints()
        if isinstance(run, Run):
            checkpoints = stack.enter_context(Checkpoints(run.checkpoints_path, identity=run.identity))
        begin = find_start(program, checkpoints, start, console)
        log = run.open_log(begin.progress.log_size, begin.step, begin.progress.log_digest)
        stack.callback(log.close)
        with begin.progress.compiling.running():
            steps = program.compile(None if debug_nans or profile else batches["train"])
        if debug_nans and steps.train is not None:
            steps = steps._replace(train=report_nans(steps.train, program.config))
        if profile and isinstance(run, Run) and steps.train is not None:
            profiler = Profiler(run.folder / "profile", console)
            stack.callback(profiler.close)
            steps = steps._replace(train=profiler.watch(steps.train))
        console.line(f"compiled in {steps.seconds:.1f} s")
        samples = Samples(experiment, prompts, run, begin.progress.evaluated_step, console)
        session = Session(
            experiment, run, program, steps, batches, begin, log, checkpoints, console, together, samples
        )
        with together.watched():
            session.run_to_end(log_every, save_every)
        result = session.result(with_baseline)
        with run.in_place():
            checkpoints.wait()  # a result needs its checkpoint
        result = run.finish(result)
        for line in baseline_lines(result):
            console.line(line)
        console.line(final_line(result, run))
        _agreeing(result)
        variables = session.state.best or program.eval_variables(session.state)
        if isinstance(run, Run):
            return Result(experiment, result, run=run, mesh=mesh, variables=variables)
        return Result(experiment, result, run=None, mesh=mesh, log=run.log, variables=variables)


def _agreeing(result: dict[str, Any]) -> dict[str, Any]:
    """Returns a stored result; raises Disagreement if its predictions disagree with its metrics."""
    if "disagreement" in result:
        raise Disagreement(result["disagreement"])
    return result


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
    """Returns the experiment with the direction (smallest or largest is best) of its rules filled in.

    Raises:
      UserError: a rule names a metric that is not measured, or the direction of its metric is not known.
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


def _start(experiment: Experiment, run: Run | MemoryRun, mesh: Mesh) -> Variables | None:
    """Returns the variables that the run starts from, on the host; `None` if all are initialised."""
    warm_start = experiment.warm_start
    # Of one run: all runs of a population have the same start.
    shapes = jax.eval_shape(experiment.init, jax.random.key(0), stored_batch(experiment, 1))
    if warm_start is None:
        check_has_constants({}, shapes)
        return None
    if isinstance(warm_start, FromExperiment):
        start = warm_start.convert(_train_first(warm_start, run, mesh))
    elif isinstance(warm_start, Mapping):
        start = warm_start
    elif callable(warm_start):
        start = warm_start(shapes)
    else:
        raise UserError(
            f"warm_start= is a {type(warm_start).__name__}; give variables, such as run.variables of a run, "
            "a function that returns them, or dl.FromExperiment"
        )
    start = jax.device_get(start)
    check_fits(start, shapes)
    check_has_constants(start, shapes)
    return start


def _train_first(before: FromExperiment, run: Run | MemoryRun, mesh: Mesh) -> Variables:
    """Returns the final variables of another experiment, on the host.

    That experiment is trained in a folder beside the folder of the run. The name of its folder is a digest of
    its options, code and data, so later runs reuse it. If it is stopped, the same command resumes it.
    """
    definition = Definition(before.fn, before.options)
    if isinstance(run, MemoryRun):
        return jax.device_get(train_run(MemoryRun(definition), mesh).variables)
    options = {**definition.defaults, **definition.options}
    checksum = definition.build().data.identity.checksum
    folders = []
    for code in (definition.code, definition.legacy_code):
        facts = [definition.name, code, options, checksum]
        digest = hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()
        folders.append(Path(run.where).parent / f"{definition.stem}-{digest[:12]}")
    folder = next((folder for folder in folders if folder.exists()), folders[0])
    result = train_run(run_at(folder, definition, resume_command="the same command again"), mesh)
    return jax.device_get(result.variables)
