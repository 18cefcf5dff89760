"""The command `compress`: makes a smaller or faster model of a finished run, as a new run."""

import dataclasses
import functools
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dl.cli.command import Call
from dl.cli.options import ComputeOptions, parse_value
from dl.cli.run_commands import show
from dl.errors import UserError
from dl.option_types import Fraction, NonNegativeFloat, NonNegativeInt, OutputFile, PositiveFloat, PositiveInt
from dl.runs.command_line import this_command
from dl.runs.console import Console, save_text
from dl.sharding import make_mesh_of
from dl.system.text import printable

if TYPE_CHECKING:
    from dl.experiment import Experiment
    from dl.methods.magnitude_pruning import MagnitudePruning
    from dl.studies.compress import Plan

Method = Literal["magnitude", "structured", "low-rank", "int8", "int4", "distill"]

_OWN = {  # the options that belong to one method only
    "sparsity": ("magnitude",),
    "pattern": ("magnitude",),
    "schedule": ("magnitude",),
    "flops_fraction": ("structured",),
    "multiple_of": ("structured",),
    "energy": ("low-rank",),
    "activations": ("int8", "int4"),
    "student": ("distill",),
    "temperature": ("distill",),
    "alpha": ("distill",),
    "features": ("distill",),
    "feature_weight": ("distill",),
}


@dataclasses.dataclass(frozen=True)
class CompressOptions(ComputeOptions):
    """Options of `compress`.

    Attributes:
      method: Method of compression. magnitude: the smallest weights become 0. structured: channels, heads and
        hidden units are removed. low-rank: kernels become products of two narrow ones. int8, int4: weights
        become integers of 8 or 4 bits. distill: a student learns from the run. It is needed, except to resume
        an unfinished compression.
      sparsity: For magnitude: fraction of the weights that become 0.
      pattern: For magnitude: N:M keeps the N largest of every M weights, such as 2:4. Default: --sparsity
        over all kernels.
      schedule: For magnitude: gradual prunes more and more during the first half of the training, once
        prunes at its start.
      flops_fraction: For structured: largest fraction of the FLOPs that is left.
      multiple_of: For structured: number that the channels of each layer are rounded up to a multiple of.
        With 8 or 16 the same FLOPs are often faster.
      energy: For low-rank: fraction of the squared singular values of each kernel that is kept.
      activations: For int8 and int4: how the inputs of layers are rounded. static: with one scale for each
        layer, from training examples. dynamic: with a scale for each row. none: not at all.
      student: For distill: name or path of the experiment of the student. Default: the experiment of the run,
        with the --options of the student.
      temperature: For distill: temperature of the softmax of teacher and student.
      alpha: For distill: weight of the teacher; the true labels have the rest.
      features: For distill: pairs of modules whose outputs are matched, written STUDENT=TEACHER.
      feature_weight: For distill: weight of the features.
      num_epochs: Number of epochs of training after the change. 0 means that nothing is trained. Default: 0
        for int8 and int4, else the number of epochs of the run.
      learning_rate: Peak learning rate of that training. Default: the learning rate of the run.
      options: Other options of the experiment that differ from those of the run, written NAME=VALUE. For
        distill they are the options of the student.
      workdir: Folder of the new run. If it holds this run, the run is resumed. Default: a new folder,
        runs/NAME-METHOD-TIME.
      mesh: How arrays are split over devices, such as data=8. See docs/devices.md. Default: data=-1.
      markdown: Markdown file of the table. Default: no file.
      experiment: Name or path of the experiment. You need it only if dl cannot find the file that the run
        used. Default: the experiment named in the run.
    """

    method: Method | None = None
    sparsity: Fraction = 0.8
    pattern: str | None = None
    schedule: Literal["gradual", "once"] = "gradual"
    flops_fraction: Fraction = 0.5
    multiple_of: PositiveInt = 1
    energy: Fraction = 0.95
    activations: Literal["static", "dynamic", "none"] = "static"
    student: str | None = None
    temperature: PositiveFloat = 4.0
    alpha: Fraction = 0.9
    features: tuple[str, ...] = ()
    feature_weight: NonNegativeFloat = 1.0
    num_epochs: NonNegativeInt | None = None
    learning_rate: PositiveFloat | None = None
    options: tuple[str, ...] = ()
    workdir: Path | None = None
    mesh: str | None = None
    markdown: OutputFile | None = None
    experiment: str | None = None


def compress(call: Call) -> int:
    """Makes a smaller or faster model of a finished run, as a new run, and compares both in a table.

    The new run is the experiment of the run with a change. It starts from the variables of the run and can be
    reported, exported, compared and compressed again like every other run. To resume an unfinished one, give
    its folder without --method; the run that it was made of is not needed.
    """
    from dl.studies.compress import compress as compress_run  # the loop, orbax
    from dl.studies.compress import resume
    from dl.studies.compression_measures import measure, table_of

    own: CompressOptions = call.own
    word = call.words[0]
    again = functools.partial(this_command, "dl", argv=call.argv)
    _check(own)
    if own.method is None:
        made = resume(
            word,
            experiment=own.experiment,
            mesh=make_mesh_of(own.mesh),
            resume_command=lambda folder: f"python -m dl compress {folder}",
        )
    else:
        fine_tuning = _fine_tuning(own, word)
        made = compress_run(
            word,
            _plan(own, fine_tuning is not None),
            own.workdir,
            fine_tuning=fine_tuning,
            student=own.student,
            experiment=own.experiment,
            mesh=make_mesh_of(own.mesh),
            resume_command=again,
        )
    assert made.folder is not None
    rows = [Path(word), made.folder] if own.method else [made.folder]
    names = ["parent", own.method] if own.method else ["compressed"]
    Console().line("measuring the time of predictions")
    table = table_of(measure(rows, names, own.experiment), f"{word} compressed, in {made.folder}")
    lines = ["Times are medians on this machine. Packed: the file after zlib, which shrinks zeros."]
    if own.method:
        lines.append(f"Whether the metrics differ: python -m dl compare {word} {made.folder}")
    show([table], lines)
    if own.markdown is not None:
        save_text(table.to_markdown(), own.markdown)
        print(f"wrote {printable(own.markdown)}")
    return 0


def _check(own: CompressOptions) -> None:
    """Raises UserError about an option of another method than the one that is chosen."""
    defaults = CompressOptions()
    for name, methods in _OWN.items():
        if own.method not in methods and getattr(own, name) != getattr(defaults, name):
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag} is for --method {' and '.join(methods)}; leave it out, or choose that")


def _plan(own: CompressOptions, is_trained: bool) -> "Plan":
    """Returns the compression of the options, or the function that plans it for a trained model."""
    if own.method == "magnitude":
        from dl.methods.magnitude_pruning import MagnitudePruning

        options: dict[str, Any] = {"n_of_m": own.pattern} if own.pattern else {"sparsity": own.sparsity}
        if own.pattern or own.schedule == "once" or not is_trained:
            return lambda made, _: MagnitudePruning(**options, leave_out=tuple(made.frozen))
        return lambda experiment, _: gradual(own.sparsity, experiment)
    if own.method == "structured":
        from dl.methods import structured_pruning

        return functools.partial(
            structured_pruning.plan, flops_fraction=own.flops_fraction, multiple_of=own.multiple_of
        )
    if own.method == "low-rank":
        from dl.methods.low_rank import plan

        return lambda experiment, variables: plan(variables, energy=own.energy, experiment=experiment)
    if own.method in ("int8", "int4"):
        from dl.methods.quantization import calibrate

        return functools.partial(
            calibrate, bits=int(own.method[3:]), activations=own.activations, qat=is_trained
        )
    from dl.methods.distillation import Distillation

    return Distillation(
        temperature=own.temperature,
        alpha=own.alpha,
        features=tuple(map(_pair, own.features)),
        feature_weight=own.feature_weight,
    )


def gradual(sparsity: float, experiment: "Experiment") -> "MagnitudePruning":
    """Returns the pruning whose sparsity grows during the first half of the steps of an experiment."""
    from dl.methods.magnitude_pruning import MagnitudePruning

    every = max(1, experiment.num_steps // 40)
    return MagnitudePruning(
        sparsity=sparsity,
        every=every,
        num_prunings=experiment.num_steps // 2 // every,
        leave_out=tuple(experiment.frozen),
    )


def _pair(word: str) -> tuple[str, str]:
    student, equals, teacher = word.partition("=")
    if not (student and equals and teacher):
        raise UserError(f"--features {word!r} is not a pair; write STUDENT=TEACHER, such as Dense_0=Dense_1")
    return student, teacher


def _fine_tuning(own: CompressOptions, folder: str) -> dict[str, Any] | None:
    """Returns the options of the training after the change; `None` if nothing is trained."""
    num_epochs = own.num_epochs
    if num_epochs is None and own.method in ("int8", "int4") and not own.options:
        num_epochs = 0
    if num_epochs == 0:
        if own.learning_rate is not None or own.options:
            raise UserError("--learning-rate and --options are for training; give --num-epochs above 0")
        return None
    changes = {"num_epochs": num_epochs, "learning_rate": own.learning_rate}
    changes = {name: value for name, value in changes.items() if value is not None}
    if own.options:
        from dl.inference.load import open_run
        from dl.runs.find import find_experiment, find_installed

        if given := own.student or own.experiment:
            fn = find_experiment(given)
        else:
            fn = find_installed(open_run(Path(folder)).name, "add --experiment NAME, or the path of its file")
        for word in own.options:
            name, equals, text = word.partition("=")
            name = name.strip("-").replace("-", "_")
            if not equals or name not in inspect.signature(fn).parameters:
                known = ", ".join(inspect.signature(fn).parameters) or "none"
                raise UserError(f"--options {word!r} is not NAME=VALUE of an option; there are {known}")
            changes[name] = parse_value(fn, name, text)
    return changes
