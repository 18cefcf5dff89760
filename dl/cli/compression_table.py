"""The command line of a table of compressed models: `compression_main` runs `studies.compression_table`."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dl.cli.compress_command import gradual
from dl.cli.exit_status import run_as_command
from dl.cli.options import StudyOptions, parse
from dl.cli.process import set_up_process
from dl.data.tfds.folders import using_data_dir
from dl.experiment import Experiment
from dl.runs.command_line import command_again
from dl.runs.provenance import module_name
from dl.sharding import make_mesh_of

if TYPE_CHECKING:
    from dl.studies.compression_table import Row


def compression_main(
    experiment_fn: Callable[..., Experiment],
    fine_tuning: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    student: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    argv: Sequence[str] | None = None,
) -> None:
    """Runs the command line of a table of compressed models, as `main` runs that of an experiment.

    Prints a table; writes compression.json, compression.md and compression.png into the folder of the study.

    Args:
      experiment_fn: as for `main`.
      fine_tuning: returns, for the options of the network, the options that differ in the training after a
        compression.
      student: returns, for the options of the network, the options that differ in a distilled student.
      argv: the arguments of the command line. `None` means those of this process.
    """

    def run() -> None:
        options, own = parse(experiment_fn, StudyOptions, argv, f"python -m {module_name(experiment_fn)}")
        set_up_process(own)
        from dl.studies.compression_table import compression_table  # the loop, which --help does not need

        with using_data_dir(own.data_dir):
            found = compression_table(
                experiment_fn,
                standard_rows(fine_tuning(options), student(options)),
                options,
                folder=own.workdir,
                mesh=make_mesh_of(own.mesh),
                resume_command=lambda folder: command_again(experiment_fn, argv, folder),
            )
        files = f"{found.folder}/compression.json, compression.md and compression.png"
        print(f"\n{found.markdown}\n\nwritten to {files}")

    run_as_command(run)


def standard_rows(fine_tuning: Mapping[str, Any], student: Mapping[str, Any]) -> "dict[str, Row]":
    """Returns the rows of the table: each method once, and two chains of two methods.

    The model with 40 % of the FLOPs is trained as long as the network was, at the same rate (Renda et al.
    2020, "Comparing rewinding and fine-tuning in neural network pruning"). Its channels are multiples of 8:
    with other numbers of channels the same FLOPs take longer.
    """
    import functools

    from dl.methods import structured_pruning
    from dl.methods.distillation import Distillation
    from dl.methods.low_rank import plan
    from dl.methods.quantization import calibrate
    from dl.studies.compression_table import Row

    structured = functools.partial(structured_pruning.plan, flops_fraction=0.4, multiple_of=8)
    return {
        "magnitude-80": Row(lambda experiment, _: gradual(0.8, experiment), fine_tuning),
        "structured-40": Row(structured, {}),
        "structured-40-int8": Row(calibrate, None, of="structured-40"),
        "int8": Row(calibrate, None),
        "int4": Row(functools.partial(calibrate, bits=4), None),
        "low-rank-50": Row(lambda made, variables: plan(variables, budget=0.5, experiment=made), fine_tuning),
        "student": Row(Distillation(), student),
        "student-int8": Row(calibrate, None, of="student"),
    }
