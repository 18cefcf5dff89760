"""Compresses a finished run: a new run that starts from its variables, and is trained on or only converted.

    pruned = compress("runs/mnist", lambda experiment, variables: MagnitudePruning(sparsity=0.8))
    quantized = compress("runs/mnist", calibrate, fine_tuning=None)
    student = compress("runs/mnist", Distillation(), fine_tuning={"width": 16})
    print(table_of(measure([parent, student.folder])).to_markdown())      # of dl.studies.compression_measures

The new run names its parent, but does not need it: the variables that it starts from lie in its folder. A
compressed run can be compressed again. What changed its model then stays, and the new change comes after it.
"""

import dataclasses
import inspect
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dl.errors import UserError
from dl.experiment import Experiment, stored_batch
from dl.inference.load import Rebuilt, open_run, rebuild, with_options_of_run
from dl.methods.compression import Compression, as_record, from_record, lasting, records_of
from dl.methods.distillation import Distillation
from dl.methods.no_training import NoTraining
from dl.models.weights.files import save_safetensors
from dl.runs.console import Console
from dl.runs.definition import Definition
from dl.runs.find import find_experiment
from dl.runs.folder import RunFolder
from dl.runs.recorded_options import recorded_definition
from dl.runs.run import Run
from dl.sharding import make_mesh
from dl.system.bucket import refuse_url
from dl.training.loop import train_run
from dl.training.restore import restore_variables
from dl.training.result import Result
from dl.training.run_options import DEFAULTS
from dl.types import Batch, Variables

Plan = Compression | Callable[[Experiment, Variables], Compression]
"""A compression, or a function that makes one for the experiment and the variables of the parent.

The experiment has the number of steps of the training that follows.
"""

AnyExperiment = str | Callable[..., Experiment]

SAME: Mapping[str, Any] = {}
"""Fine-tuning with the options of the parent, such as its number of epochs and its learning rate."""


def compress(
    parent: Path | str,
    plan: Plan,
    folder: Path | str | None = None,
    *,
    fine_tuning: Mapping[str, Any] | None = SAME,
    student: AnyExperiment | None = None,
    experiment: AnyExperiment | None = None,
    mesh: Mesh | None = None,
    console: Console | None = None,
    resume_command: Callable[[Path], str] | None = None,
) -> Result:
    """Makes a compressed run of a finished run, and trains it to its end.

    Args:
      parent: the folder of the finished run.
      plan: the compression, or a function that makes it, such as `methods.quantization.calibrate`.
      folder: the folder of the new run. The same call resumes it. `None` means runs/NAME-METHOD-TIME.
      fine_tuning: options of the experiment that differ from those of the parent, such as `num_epochs` and
        `learning_rate`. `None` means that nothing is trained.
      student: for a distillation, the experiment of the student; then `fine_tuning` are its options. `None`
        means the experiment of the parent.
      experiment: the experiment of the parent, its NAME or the path of its file; see `dl.load_run`.
      mesh: the devices. `None` means all devices.
      console: where progress is printed.
      resume_command: returns the command that resumes the run in a folder.

    Raises:
      UserError: the parent has not finished or cannot be compressed so, the experiment has no such option, or
        the folder holds another run.
    """
    mesh = mesh or make_mesh()
    for place in (parent, folder):
        refuse_url(place, "a compression")
    of_parent = _finished(Path(parent), experiment)
    before = [from_record(record) for record in _records(of_parent.run)]
    if "quantization" in methods_of(of_parent.run):
        raise UserError(f"{parent} is quantised, and its integers cannot be compressed; quantise last")
    variables = jax.device_get(restore_variables(of_parent.experiment, of_parent.run, mesh))
    for old in before:
        if isinstance(old, Distillation):  # without the linear maps of its features
            variables = old.stored(variables)
    kept = [as_record(old) for old in lasting(before)]
    made: Compression
    if callable(plan):
        planned = with_options_of_run(
            _definition(of_parent, None, fine_tuning), _of_run(of_parent.run, kept), of_parent.run
        )
        made = plan(planned.build(), variables)
    else:
        made = plan
    is_student = isinstance(made, Distillation)
    if student is not None and not is_student:
        raise UserError("student= is for a distillation; the other methods keep the model of the run")
    if is_student and fine_tuning is None:
        raise UserError("a student that is not trained learns nothing; give it at least one epoch")
    own = _definition(of_parent, student, fine_tuning)
    records = kept
    if isinstance(made, Distillation):
        options = {name: of_parent.run.options[name] for name in of_parent.run.options if name != "parent"}
        teacher = {"experiment": of_parent.run.name, "options": {**options, "compression": records}}
        records = []
        made = dataclasses.replace(made, teacher=teacher, teacher_experiment=of_parent.experiment)
        _check_same_inputs(own.build(), of_parent.experiment)
    records += [as_record(made)] + ([as_record(NoTraining())] if fine_tuning is None else [])
    digest = of_parent.run.finished_result().get("params_digest")
    facts = _of_run(of_parent.run, records) | {"parent": {"folder": str(parent), "params_digest": digest}}
    known = {of_parent.run.name: of_parent.definition.fn, own.name: own.fn}

    def train_in(folder: Path) -> Result:
        run = RunFolder(folder)
        definition = with_options_of_run(own, facts, run, lambda name: known[name])
        if run.record is None:
            initial = made.converted(variables)
            if len(records) > 1:
                _check_runs(definition.build(), initial, [str(record["method"]) for record in records])
            save_safetensors(run.initial_path, initial)
        return train_run(Run(folder, definition, resume_command), mesh, console=console)

    method = records[-1 if fine_tuning is not None else -2]["method"]
    return _in_new_folder(folder, f"{own.stem}-{method.replace('_', '-')}", train_in)


def resume(
    folder: Path | str,
    *,
    experiment: AnyExperiment | None = None,
    mesh: Mesh | None = None,
    console: Console | None = None,
    resume_command: Callable[[Path], str] | None = None,
) -> Result:
    """Trains an unfinished compressed run to its end. Its parent is not needed.

    Raises:
      UserError: the folder does not hold a compressed run.
    """
    rebuilt = rebuild(Path(folder), experiment)
    if not _records(rebuilt.run):
        raise UserError(f"{folder} is not a compressed run; say how to compress it with --method")
    return train_run(Run(folder, rebuilt.definition, resume_command), mesh or make_mesh(), console=console)


def _finished(folder: Path, experiment: AnyExperiment | None) -> Rebuilt:
    """Returns a finished run of one seed."""
    open_run(folder).finished_result()
    rebuilt = rebuild(folder, experiment)
    if rebuilt.num_seeds > 1:
        raise UserError(
            f"{folder} trained {rebuilt.num_seeds} seeds at the same time; compress a run of one seed"
        )
    return rebuilt


def _records(run: RunFolder) -> list[Mapping[str, Any]]:
    return records_of(run.options.get("compression"))


def _of_run(run: RunFolder, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the options of a run, such as its precision, with other compressions."""
    own = {name: value for name, value in run.options.items() if name in DEFAULTS}
    return {**own, "compression": records}


def _definition(
    parent: Rebuilt, student: AnyExperiment | None, changes: Mapping[str, Any] | None
) -> Definition:
    """Returns the function of the new run with its options."""
    if student is None:
        recorded, fn, name = parent.run.options, parent.definition.fn, parent.run.name
    else:
        recorded, name = {}, None
        fn = find_experiment(student) if isinstance(student, str) else student
    known = inspect.signature(fn).parameters
    if others := (changes or {}).keys() - known.keys():
        own = name or Definition(fn).name
        raise UserError(f"{own} has no option {min(others)}; it has {', '.join(known) or 'none'}")
    made = recorded_definition(fn, recorded, name)
    return dataclasses.replace(made, options={**made.options, **(changes or {})})


def _check_same_inputs(student: Experiment, teacher: Experiment) -> None:
    """Raises UserError if the teacher was trained on inputs that the student does not get."""
    name = teacher.task.input_name
    rows = student.data.train[np.arange(2)]
    read = []
    for experiment in (student, teacher):
        batch: Batch = {feature: jnp.asarray(values) for feature, values in rows.items()}
        batch |= {"index": jnp.arange(2), "mask": jnp.ones(2, bool)}
        read.append((batch if experiment.preprocess is None else experiment.preprocess(batch)).get(name))
    one, other = read
    specs = [made.data.train.spec.get(name) for made in (student, teacher)]
    if (
        specs[0] != specs[1]
        or one is None
        or other is None
        or one.shape != other.shape
        or not np.allclose(one, other)
    ):
        raise UserError(
            f"the student does not read the {name} that the teacher was trained on; give both experiments "
            "the same data and the same preprocessing"
        )


def _check_runs(experiment: Experiment, variables: Variables, methods: Sequence[str]) -> None:
    """Raises UserError if the compressions of a model cannot be computed together."""
    state = {name: collection for name, collection in variables.items() if name != "params"}

    def evaluate(params: Any, batch: Batch) -> Any:
        batch = batch if experiment.preprocess is None else experiment.preprocess(batch)
        return experiment.task.loss(params, state, batch, None)[0].compute()

    try:
        jax.eval_shape(evaluate, variables["params"], stored_batch(experiment, 2))
    except (TypeError, ValueError, KeyError, IndexError) as error:
        names = ", then ".join(name for name in methods if name != "no_training")
        raise UserError(
            f"these compressions do not work together: {names} ({' '.join(str(error).split())[:80]}); choose "
            "another order or another method"
        ) from error


def _in_new_folder(folder: Path | str | None, stem: str, train_in: Callable[[Path], Result]) -> Result:
    """Returns what `train_in` returns for a folder. A folder in which no run began is removed again."""
    if folder is None:
        folder = Path("runs") / f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"
        if folder.exists():
            raise UserError(f"{folder} exists; run the command again")
    folder = Path(folder)
    was_there = folder.exists()
    try:
        return train_in(folder)
    finally:
        run = RunFolder(folder)
        if run.record is None and run.initial_path.exists():
            run.initial_path.unlink()
            if not was_there:
                shutil.rmtree(folder, ignore_errors=True)


def methods_of(run: RunFolder) -> Sequence[str]:
    """Returns the names of the compressions of a run, in the order of use."""
    return [str(record.get("method")) for record in _records(run) if record.get("method") != "no_training"]
