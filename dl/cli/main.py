"""The command line of an experiment: `main` reads the options, builds the experiment and runs it."""

from collections.abc import Callable, Sequence

from dl.cli.exit_status import run_as_command
from dl.cli.options import parse
from dl.cli.process import set_up_process
from dl.cli.run_options import RunOptions
from dl.experiment import Experiment
from dl.runs.provenance import module_name


def main(experiment_fn: Callable[..., Experiment], argv: Sequence[str] | None = None) -> None:
    """Reads the options off the signature of `experiment_fn`, builds the experiment and runs it.

    Exits with one line and status 2 on a user's mistake, 74 where the disk takes no more, and 128 + N after
    signal N (130 after Ctrl-C, 143 after SIGTERM, 129 after a hang-up).
    """

    def run() -> None:
        prog = f"python -m {module_name(experiment_fn)}"
        options, run_options = parse(experiment_fn, RunOptions, argv, prog)
        set_up_process(run_options)
        from dl.cli.run_experiment import run_experiment  # the loop, which --help does not need

        run_experiment(experiment_fn, options, run_options, argv)

    run_as_command(run)
