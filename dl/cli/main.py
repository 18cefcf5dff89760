"""The command line of an experiment: `main` reads the options, builds the experiment and runs it."""

import contextlib
import dataclasses
import functools
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import jax

from dl.cli.exit_status import run_as_command
from dl.cli.options import YIELDS, ComputeOptions, parse
from dl.cli.process import set_up_process
from dl.data.tfds.folders import using_data_dir
from dl.errors import UserError
from dl.experiment import Experiment
from dl.option_types import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from dl.ranges import Range
from dl.runs.bucket_run import BucketRun, run_at
from dl.runs.command_line import this_command, without_workdir
from dl.runs.definition import Definition
from dl.runs.provenance import module_name
from dl.runs.run import Run
from dl.sharding import make_mesh_of
from dl.studies.cross_validation import cross_validate
from dl.system.bucket import url_of
from dl.system.cluster import find_cluster
from dl.training.loop import train_run
from dl.training.population import consecutive
from dl.training.processes import STALL_SECONDS, join
from dl.training.run_options import DEFAULTS, changed, with_run_options


@dataclasses.dataclass(frozen=True)
class RunOptions(ComputeOptions):
    """Where and how a run happens. Only the precision and the clipping change its results.

    Attributes:
      workdir: Folder of the run, on a disk or gs://BUCKET/FOLDER. If the folder holds a run, that run is
        resumed. Default: a new folder, runs/NAME-TIME.
      mesh: How arrays are split over devices: data=8 splits each batch over eight devices; data=-1 uses all
        devices. See docs/devices.md. Default: data=-1.
      num_seeds: Number of runs, with the seeds SEED, SEED + 1, … They are trained at the same time in one
        program, and the result is the mean over them.
      folds: Number of folds of a cross-validation over the training and validation splits. One run is
        trained for each fold, in the subfolders fold-1, fold-2, … of --workdir. The result is the mean over
        the held-out folds. The test split is not read. Default: no cross-validation.
      folds_with_test: Divide the test split into folds too. Published results on a set without an official
        test split are over all of its examples.
      log_every: Number of steps between two lines of metrics.jsonl.
      save_every: Number of seconds between two checkpoints. A checkpoint is also written at the end, and when
        the run is stopped.
      report: Write report.html into the folder of the run at the end.
      baseline: Compute the baseline of the experiment at the end, and compare the network with it.
      debug_nans: Stop at the first NaN, and name the operation and the line of your code that produced it.
        Training is slower.
      precision: Number format of the model's computation. Parameters, statistics and losses stay in float32.
        With float16, the loss is also scaled.
      clip_norm: Largest global norm of the gradients; larger gradients are scaled down. Default: no clipping.
      reduction: How gradients are added over devices. fast: in the order that is fastest. exact: in a fixed
        order, so that a run has the same bits on 1, 2, 4 and 8 devices; each step takes longer.
      profile: Write a trace of a few steps into WORKDIR/profile, for Perfetto or XProf.
      coordinator: HOST:PORT of process 0, in a run of several processes. See docs/devices.md. Default:
        $DL_COORDINATOR, or what SLURM or Cloud TPU states.
      num_processes: Number of processes. Default: $DL_NUM_PROCESSES, or what SLURM or Cloud TPU states.
      process_id: Number of this process, from 0. Default: $DL_PROCESS_ID, or what SLURM or Cloud TPU states.
      stall_after: Smallest number of seconds after which a process without an answer or without progress
        counts as lost. The run then ends in all processes with the exit status 75.
    """

    workdir: Path | None = None
    mesh: str | None = None
    num_seeds: PositiveInt = 1
    folds: Annotated[int, Range(2)] | None = None
    folds_with_test: bool = False
    log_every: PositiveInt = 10
    save_every: NonNegativeFloat = 30.0
    report: bool = True
    baseline: bool = dataclasses.field(default=True, metadata=YIELDS)
    debug_nans: bool = False
    precision: Literal["float32", "bfloat16", "float16"] = dataclasses.field(
        default="float32", metadata=YIELDS
    )
    clip_norm: PositiveFloat | None = dataclasses.field(default=None, metadata=YIELDS)
    reduction: Literal["fast", "exact"] = dataclasses.field(default="fast", metadata=YIELDS)
    profile: bool = dataclasses.field(default=False, metadata=YIELDS)
    coordinator: str | None = dataclasses.field(default=None, metadata=YIELDS)
    num_processes: PositiveInt | None = dataclasses.field(default=None, metadata=YIELDS)
    process_id: NonNegativeInt | None = dataclasses.field(default=None, metadata=YIELDS)
    stall_after: PositiveFloat = dataclasses.field(default=STALL_SECONDS, metadata=YIELDS)


def main(experiment_fn: Callable[..., Experiment], argv: Sequence[str] | None = None) -> None:
    """Reads the options off the signature of `experiment_fn`, builds the experiment and runs it.

    Exits with one line and status 2 on a user's mistake, 74 where the disk takes no more, and 128 + N after
    signal N (130 after Ctrl-C, 143 after SIGTERM, 129 after a hang-up).
    """
    name = module_name(experiment_fn)

    def run_experiment() -> None:
        options, run_options = parse(experiment_fn, RunOptions, argv, f"python -m {name}")
        set_up_process(run_options)
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
                raise UserError(
                    "--folds-with-test needs --folds N; without folds, the test split is the test"
                )
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

    run_as_command(run_experiment)


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


def command_again(experiment_fn: Callable[..., Experiment], argv: Sequence[str] | None, folder: Path) -> str:
    """Returns what starts an experiment again in a folder: a command line, in a notebook a call of `main`."""
    main_module = sys.modules["__main__"]
    if experiment_fn.__module__ != "__main__" or getattr(main_module, "__spec__", None):
        return this_command(module_name(experiment_fn), folder, argv)
    if path := getattr(main_module, "__file__", None):
        return this_command(path, folder, argv)
    words = [*without_workdir(argv or ()), "--workdir", url_of(folder) or str(folder)]
    return f"main({experiment_fn.__name__}, {words})"
