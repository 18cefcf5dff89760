"""The command line of an experiment: `main` reads the options, builds the experiment and runs it."""

import contextlib
import dataclasses
import functools
import inspect
import math
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import jax
from jax.sharding import Mesh

from dl.cross_validation import cross_validate
from dl.errors import StorageError, UserError
from dl.experiment import Experiment
from dl.files import DISK_ERRORS
from dl.loop import train
from dl.members import consecutive
from dl.options import NonNegativeFloat, PositiveInt, Range, parse
from dl.provenance import code_digest, function_digest, legacy_code_digest
from dl.run import Run, this_command, without_workdir
from dl.sharding import make_mesh, parse_mesh, platform_trouble
from dl.signals import Stopped
from dl.streams import forgiving

MAX_VIRTUAL_DEVICES = 64


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Where and how a run happens; not what it computes.

    Attributes:
      workdir: the run's folder; the same folder again resumes the run. None: runs/NAME-TIME.
      data_dir: the folder of prepared data sets. None: $TFDS_DATA_DIR, else ~/tensorflow_datasets.
      mesh: device axes, such as data=8 or data=4,fsdp=2. None: all devices on data.
      num_seeds: seeds trained at the same time in one program, from --seed on; the result is their mean.
      folds: train once for each of so many stratified folds of train and validation, in WORKDIR/fold-1, …;
        the result is the mean over the held-out folds, and the test split is not read.
      log_every: steps between two lines of metrics.jsonl.
      save_every: seconds between two checkpoints; one is always written at the end and when stopped.
      report: write report.html into the run's folder at the end.
      debug_nans: stop at the first NaN and name the operation and the line that made it. Slower.
    """

    workdir: Path | None = None
    data_dir: Path | None = None
    mesh: str | None = None
    num_seeds: PositiveInt = 1
    folds: Annotated[int, Range(2)] | None = None
    log_every: PositiveInt = 10
    save_every: NonNegativeFloat = 30.0
    report: bool = True
    debug_nans: bool = False


def main(experiment_fn: Callable[..., Experiment], argv: Sequence[str] | None = None) -> None:
    """Reads the options off the signature of `experiment_fn`, builds the experiment and runs it.

    Exits with one line and status 2 on a user's mistake, 74 where the disk takes no more, and 128 + N after
    signal N (130 after Ctrl-C, 143 after SIGTERM, 129 after a hang-up).
    """
    name = module_name(experiment_fn)

    def run_experiment() -> None:
        options, run_options = parse(experiment_fn, RunOptions, argv, f"python -m {name}")
        mesh = make_mesh_of(run_options.mesh)
        if run_options.data_dir is not None:
            os.environ["TFDS_DATA_DIR"] = str(run_options.data_dir)
        recorded = {**options, "num_seeds": run_options.num_seeds} if run_options.num_seeds > 1 else options
        parameters = inspect.signature(experiment_fn).parameters
        defaults = {option: p.default for option, p in parameters.items()} | {"num_seeds": 1}
        code, legacy_code = code_of(experiment_fn), legacy_code_of(experiment_fn)
        resume = functools.partial(_command_again, experiment_fn, argv)
        run = Run(run_options.workdir, name, recorded, code, resume, defaults, legacy_code)
        with contextlib.closing(run):
            experiment = experiment_fn(**options)
            if not isinstance(experiment, Experiment):
                called = f"{name}: {experiment_fn.__name__}()"
                raise UserError(f"{called} returned {experiment!r}; it must return an Experiment")
            folds = run_options.folds
            run_all = train if folds is None else functools.partial(cross_validate, num_folds=folds)
            run_all(
                experiment,
                run,
                mesh,
                log_every=run_options.log_every,
                save_every=run_options.save_every,
                members=consecutive(experiment.seed, run_options.num_seeds),
                debug_nans=run_options.debug_nans,
            )
            if run_options.report and folds is None:
                _report(run, experiment)

    run_as_command(run_experiment)


def _report(run: Run, experiment: Experiment) -> None:
    """Writes the report of a run that has ended; whatever goes wrong with it, the run stands."""
    if jax.process_index() or run.report_path.exists():
        return
    try:
        from dl.report import write_report  # Jinja, scikit-learn

        write_report(run.folder, run.report_path, experiment)
    except Exception as error:
        brief = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        again = shlex.join(["python", "-m", "dl", "report", str(run.folder)])
        print(f"there is no report ({brief}); to try again: {again}", file=sys.stderr)
    else:
        print(f"report: {run.report_path}")


def run_as_command(run: Callable[[], None]) -> None:
    """Runs a command, and exits as `main` says."""
    if status := status_of(run):
        sys.exit(status)


def status_of(run: Callable[[], int | None]) -> int:
    """Returns the exit status of a command, after one line about what a user can mend."""
    with forgiving():
        try:
            return run() or 0
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.status
        except Stopped as stopped:
            print(stopped, file=sys.stderr)
            return 128 + stopped.number
        except KeyboardInterrupt:
            print("interrupted; what was saved before stands", file=sys.stderr)
            return 130
        except (RuntimeError, AssertionError):
            if not (trouble := platform_trouble()):
                raise
            print(f"error: {trouble}", file=sys.stderr)
            return UserError.status
        except OSError as error:
            if error.errno not in DISK_ERRORS:
                raise
            where = f" ({error.filename})" if error.filename else ""
            print(f"error: {error.strerror}{where}; what was saved before stands", file=sys.stderr)
            return StorageError.status


def _command_again(experiment_fn: Callable[..., Experiment], argv: Sequence[str] | None, folder: Path) -> str:
    """Returns what starts an experiment again in a folder: a command line, in a notebook a call of `main`."""
    main_module = sys.modules["__main__"]
    if experiment_fn.__module__ != "__main__" or getattr(main_module, "__spec__", None):
        return this_command(module_name(experiment_fn), folder, argv)
    if path := getattr(main_module, "__file__", None):
        return this_command(path, folder, argv)
    return f"main({experiment_fn.__name__}, {[*without_workdir(argv or ()), '--workdir', str(folder)]})"


def module_name(experiment_fn: Callable[..., Experiment]) -> str:
    """Returns `experiments.NAME`, also when that module runs as `__main__`."""
    if experiment_fn.__module__ != "__main__":
        return experiment_fn.__module__
    main_module = sys.modules["__main__"]
    spec = getattr(main_module, "__spec__", None)
    # A notebook and `python -c` have no file.
    return spec.name if spec else Path(getattr(main_module, "__file__", None) or experiment_fn.__name__).stem


def code_of(experiment_fn: Callable[..., Experiment]) -> str:
    """Returns the digest of the file that defines an experiment; where there is none, of the function."""
    path = _file_of(experiment_fn)
    return code_digest(path) if path else function_digest(experiment_fn)


def legacy_code_of(experiment_fn: Callable[..., Experiment]) -> str:
    """Returns what `code_of` was in runs without an `id`."""
    path = _file_of(experiment_fn)
    return legacy_code_digest(path) if path else ""


def _file_of(experiment_fn: Callable[..., Experiment]) -> Path | None:
    try:
        path = inspect.getsourcefile(experiment_fn)
    except TypeError:  # of a class or function made in a session
        return None
    return Path(path) if path and Path(path).is_file() else None


def make_mesh_of(text: str | None) -> Mesh:
    """Returns the mesh; where there is only a CPU, `--mesh data=8` makes eight devices of it."""
    sizes = parse_mesh(text) if text else None
    wanted = math.prod((sizes or {}).values())
    if 1 < wanted <= MAX_VIRTUAL_DEVICES and "xla_force_host_platform_device_count" not in os.environ.get(
        "XLA_FLAGS", ""
    ):
        # Ignored where there is an accelerator, and refused once a backend runs.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", wanted)
    return make_mesh(sizes)
