"""The command line of a benchmark: `benchmark_main` reads the options and runs `studies.benchmark`."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence

from dl.cli.exit_status import run_as_command
from dl.cli.options import StudyOptions, parse
from dl.cli.process import set_up_process
from dl.data.tfds.folders import using_data_dir
from dl.experiment import Experiment
from dl.option_types import PositiveInt
from dl.runs.command_line import command_again
from dl.runs.provenance import module_name
from dl.sharding import make_mesh_of


@dataclasses.dataclass(frozen=True)
class BenchmarkOptions(StudyOptions):
    """Options of a benchmark.

    Attributes:
      tuning_seeds: Number of seeds for each value of the tuned hyperparameter.
      final_seeds: Number of new seeds on which each method is measured with its best value.
    """

    tuning_seeds: PositiveInt = 3
    final_seeds: PositiveInt = 10


def benchmark_main(
    experiment_fn: Callable[..., Experiment],
    methods: str,
    names: Collection[str],
    tuned: str,
    values: Sequence[float] | Mapping[str, Sequence[float]],
    argv: Sequence[str] | None = None,
    *,
    metric: str = "loss",
    test_metric: str = "accuracy",
    reference: str | None = None,
) -> None:
    """Runs the command line of a benchmark, as `main` runs that of an experiment.

    Prints a table; writes benchmark.json, benchmark.md and benchmark.png into the folder of the study.

    Args:
      experiment_fn: as for `main`.
      methods: the option whose values are the methods, such as `optimizer`.
      names: its values.
      tuned: the option that is tuned for each method. Its values are numbers.
      values: the values of `tuned`: one list for all methods, or one list for each. A list of one value is
        not tuned.
      argv: the arguments of the command line. `None` means those of this process.
      metric: the validation metric that selects the value.
      test_metric: the metric that ranks the methods.
      reference: the method that all others are compared with.

    Raises:
      ValueError: the reference is not one of the methods.
    """

    def run() -> None:
        options, own = parse(experiment_fn, BenchmarkOptions, argv, f"python -m {module_name(experiment_fn)}")
        set_up_process(own)
        from dl.studies.benchmark import benchmark  # the loop, which --help does not need

        with using_data_dir(own.data_dir):
            found = benchmark(
                experiment_fn,
                methods,
                names,
                tuned,
                values,
                options,
                metric=metric,
                test_metric=test_metric,
                reference=reference,
                tuning_seeds=own.tuning_seeds,
                final_seeds=own.final_seeds,
                folder=own.workdir,
                mesh=make_mesh_of(own.mesh),
                resume_command=lambda folder: command_again(experiment_fn, argv, folder),
            )
        files = f"{found.folder}/benchmark.json, benchmark.md and benchmark.png"
        print(f"\n{found.markdown}\n\nwritten to {files}")

    run_as_command(run)
