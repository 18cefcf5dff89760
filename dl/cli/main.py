"""The command line of an experiment: `main` reads the options, builds the experiment and runs it."""

import contextlib
import dataclasses
import functools
import inspect
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import jax

from dl.cli.options import YIELDS, parse
from dl.errors import StorageError, UserError
from dl.experiment import Experiment
from dl.option_types import NonNegativeFloat, PositiveFloat, PositiveInt
from dl.ranges import Range
from dl.runs.folder import Run, this_command, without_workdir
from dl.runs.provenance import build, code_of, legacy_code_of, module_name
from dl.runs.streams import forgiving
from dl.sharding import make_mesh_of, platform_trouble
from dl.studies.cross_validation import cross_validate
from dl.system.files import DISK_ERRORS
from dl.system.text import printable
from dl.training.loop import train
from dl.training.population import consecutive
from dl.training.run_options import DEFAULTS, changed, with_run_options
from dl.training.signals import Stopped

_OUT_OF_MEMORY = re.compile("RESOURCE_EXHAUSTED|[Oo]ut of memory|bad_alloc")  # in what XLA says
MAX_LINE = 1_000  # characters of a message


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Where and how a run happens. Of what it computes they change the precision and the clipping alone.

    Attributes:
      workdir: the run's folder; the same folder again resumes the run. None: runs/NAME-TIME.
      data_dir: the folder of prepared data sets. None: $TFDS_DATA_DIR, else ~/tensorflow_datasets.
      mesh: device axes, such as data=8 or data=4,fsdp=2. None: all devices on data.
      num_seeds: seeds trained at the same time in one program, from --seed on; the result is their mean.
      folds: train once for each of so many folds of train and validation, in WORKDIR/fold-1, …; stratified
        where every example has a class, else drawn at random;
        the result is the mean over the held-out folds, and the test split is not read.
      log_every: steps between two lines of metrics.jsonl.
      save_every: seconds between two checkpoints; one is always written at the end and when stopped.
      report: write report.html into the run's folder at the end.
      debug_nans: stop at the first NaN and name the operation and the line that made it. Slower.
      precision: of the model's computation. Parameters, statistics and losses stay in float32; float16 scales
        the loss.
      clip_norm: global norm that gradients are scaled down to before the optimizer. None: no clipping.
      profile: trace a few steps into WORKDIR/profile, for Perfetto or XProf.
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
    precision: Literal["float32", "bfloat16", "float16"] = dataclasses.field(
        default="float32", metadata=YIELDS
    )
    clip_norm: PositiveFloat | None = dataclasses.field(default=None, metadata=YIELDS)
    profile: bool = dataclasses.field(default=False, metadata=YIELDS)


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
        asked = {name: getattr(run_options, name) for name in DEFAULTS}
        recorded = {**changed(asked), **options}
        if run_options.num_seeds > 1:
            recorded |= {"num_seeds": run_options.num_seeds}
        parameters = inspect.signature(experiment_fn).parameters
        defaults = {**DEFAULTS, **{option: p.default for option, p in parameters.items()}, "num_seeds": 1}
        code, legacy_code = code_of(experiment_fn), legacy_code_of(experiment_fn)
        resume = functools.partial(_command_again, experiment_fn, argv)
        run = Run(run_options.workdir, name, recorded, code, resume, defaults, legacy_code)
        with contextlib.closing(run):
            experiment = with_run_options(build(experiment_fn, options), asked)
            folds = run_options.folds
            run_all = train if folds is None else functools.partial(cross_validate, num_folds=folds)
            run_all(
                experiment,
                run,
                mesh,
                log_every=run_options.log_every,
                save_every=run_options.save_every,
                population=consecutive(experiment.seed, run_options.num_seeds),
                debug_nans=run_options.debug_nans,
                profile=run_options.profile,
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
    except Exception as error:
        brief = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        again = shlex.join(["python", "-m", "dl", "report", str(run.folder)])
        print(f"there is no report ({brief}); to try again: {again}", file=sys.stderr)
    else:
        print(f"report: {run.report_path}")


def run_as_command(run: Callable[[], None]) -> None:
    """Runs a command; returns where it succeeds, and else exits with its status."""
    if status := exit_status(run):
        sys.exit(status)


def exit_status(run: Callable[[], int | None]) -> int:
    """Runs a command and returns its exit status: all that ends a command of `dl` is told apart here.

    A user's mistake is one line on the standard error and status 2, or the one that its exception states;
    Ctrl-C 130, SIGTERM 143, as a shell would say. Output that nobody reads any more costs nothing but itself.
    """
    with forgiving():
        try:
            return run() or 0
        except UserError as error:
            print(f"error: {_shortened(printable(error))}", file=sys.stderr)
            return error.status
        except Stopped as stopped:
            print(stopped, file=sys.stderr)
            return 128 + stopped.number
        except KeyboardInterrupt:
            print("interrupted; what was saved before stands", file=sys.stderr)
            return 128 + signal.SIGINT
        except (MemoryError, RuntimeError, AssertionError) as error:
            if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error)):
                reason = _shortened(printable(" ".join(str(error).split()) or "MemoryError"))
                said = f"out of memory; make the model or the batch smaller ({reason})"
            elif not (said := platform_trouble()):
                raise
            print(f"error: {said}", file=sys.stderr)
            return UserError.status
        except OSError as error:
            if error.errno not in DISK_ERRORS:
                raise
            where = f" ({error.filename})" if error.filename else ""
            print(f"error: {error.strerror}{where}; what was saved before stands", file=sys.stderr)
            return StorageError.status


def _shortened(line: str) -> str:
    """Returns a line without its middle, where a word that somebody gave would fill the screen."""
    return line if len(line) <= MAX_LINE else f"{line[: MAX_LINE // 2]} … {line[-MAX_LINE // 2 :]}"


def _command_again(experiment_fn: Callable[..., Experiment], argv: Sequence[str] | None, folder: Path) -> str:
    """Returns what starts an experiment again in a folder: a command line, in a notebook a call of `main`."""
    main_module = sys.modules["__main__"]
    if experiment_fn.__module__ != "__main__" or getattr(main_module, "__spec__", None):
        return this_command(module_name(experiment_fn), folder, argv)
    if path := getattr(main_module, "__file__", None):
        return this_command(path, folder, argv)
    return f"main({experiment_fn.__name__}, {[*without_workdir(argv or ()), '--workdir', str(folder)]})"
