"""What `main` does with the options that it has read: it trains the experiment and writes the report."""

import contextlib
import functools
import shlex
import sys
from collections.abc import Callable, Sequence

import jax

from dl.cli.run_options import RunOptions
from dl.data.tfds.folders import using_data_dir
from dl.errors import UserError
from dl.experiment import Experiment
from dl.option_types import Options
from dl.runs.bucket_run import BucketRun, run_at
from dl.runs.command_line import command_again
from dl.runs.definition import Definition
from dl.runs.run import Run
from dl.sharding import make_mesh_of
from dl.studies.cross_validation import cross_validate
from dl.system.cluster import find_cluster
from dl.training.loop import train_run
from dl.training.population import consecutive
from dl.training.processes import join
from dl.training.run_options import DEFAULTS, changed, with_run_options


def run_experiment(
    experiment_fn: Callable[..., Experiment],
    options: Options,
    run_options: RunOptions,
    argv: Sequence[str] | None,
) -> None:
    """Builds an experiment and trains it, or the runs of its cross-validation; writes the report.

    Args:
      experiment_fn: the function of the experiment.
      options: the options of the function.
      run_options: the options of the run.
      argv: the arguments of the command line. `None` means those of this process.

    Raises:
      UserError: as `train`, or a mistake in the options.
    """
    cluster = find_cluster(run_options.coordinator, run_options.num_processes, run_options.process_id)
    join(cluster, run_options.stall_after)
    mesh = make_mesh_of(run_options.mesh)
    asked = {name: getattr(run_options, name) for name in DEFAULTS}
    facts = changed(asked)
    if run_options.num_seeds > 1:
        facts |= {"num_seeds": run_options.num_seeds}
    definition = Definition(experiment_fn, options).changed(
        facts, functools.partial(with_run_options, options=asked)
    )
    run = run_at(run_options.workdir, definition, functools.partial(command_again, experiment_fn, argv))
    with contextlib.closing(run), using_data_dir(run_options.data_dir):
        experiment = definition.build()
        folds = run_options.folds
        with_test = run_options.folds_with_test
        if with_test and folds is None:
            raise UserError("--folds-with-test needs --folds N; without folds, the test split is the test")
        run_all = (
            train_run
            if folds is None
            else functools.partial(cross_validate, num_folds=folds, with_test=with_test)
        )
        run_all(
            run,
            mesh,
            log_every=run_options.log_every,
            save_every=run_options.save_every,
            population=consecutive(experiment.seed, run_options.num_seeds),
            debug_nans=run_options.debug_nans,
            profile=run_options.profile,
            with_baseline=run_options.baseline,
        )
        if run_options.report:
            _report(run, None if folds else experiment)


def _report(run: Run, experiment: Experiment | None) -> None:
    """Writes the report of what has ended, a cross-validation if None; whatever goes wrong, that stands."""
    if jax.process_index() or run.report_path.exists():
        return
    try:
        from dl.report import write_folds_report, write_report  # Jinja, scikit-learn

        if experiment is None:
            write_folds_report(run.folder, run.report_path)
        else:
            write_report(run.folder, run.report_path, experiment)
        if isinstance(run, BucketRun):
            run.publish_report()
    except Exception as error:
        brief = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        again = shlex.join(["python", "-m", "dl", "report", run.where])
        print(f"the report was not written ({brief}); to try again, run {again}", file=sys.stderr)
    else:
        print(f"report: {run.where}/{run.report_path.name}")
