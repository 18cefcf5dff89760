"""Loads a run: makes its experiment from run.json, and reads its variables."""

import contextlib
import dataclasses
import enum
import inspect
import sys
import types
import typing
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from jax.sharding import Mesh

from dl.data.recorded import remembering
from dl.errors import UserError
from dl.experiment import Experiment
from dl.option_types import PositiveInt, check_value, type_name
from dl.runs.definition import Definition
from dl.runs.differences import differences, in_one_line
from dl.runs.find import find_experiment, find_installed
from dl.runs.folder import RunFolder
from dl.runs.provenance import code_of, legacy_code_of
from dl.sharding import make_mesh
from dl.system.bucket import url_of
from dl.system.files import expand, named_path
from dl.training.identity import describe
from dl.training.result import Result
from dl.training.run_options import DEFAULTS, with_run_options


@dataclasses.dataclass(frozen=True)
class Rebuilt:
    """A run and its experiment.

    Attributes:
      experiment: the experiment that the present code makes with the options of the run.
      run: the folder of the run.
      num_seeds: number of seeds that were trained at the same time.
      warning: what has changed since the run began; empty if nothing has.
    """

    experiment: Experiment
    run: RunFolder
    num_seeds: int
    warning: str


def open_run(folder: Path) -> RunFolder:
    """Returns the run in a folder.

    Raises:
      UserError: the folder does not hold a run.
    """
    run = RunFolder(folder)
    record = run.record if folder.is_dir() else None
    if not isinstance(record, dict) or not isinstance(record.get("options"), dict):
        raise UserError(f"{folder} does not hold a run; give the folder of a run, such as runs/NAME-TIME")
    return run


def rebuild(folder: Path, experiment: str | Callable[..., Experiment] | None = None) -> Rebuilt:
    """Imports the experiment of a run and calls it with the options of the run.

    Args:
      folder: the folder of the run.
      experiment: the function, the NAME or the path of the experiment. `None` means the name in run.json,
        which must be an experiment that is installed beside `dl`; other code is not trusted.

    Raises:
      UserError: there is no run, the experiment does not exist or is not installed, or its options have
        changed.
    """
    run = open_run(folder)
    if experiment is None:
        experiment_fn = find_installed(run.name, _what_to_add(run.name))
    else:
        experiment_fn = find_experiment(experiment) if isinstance(experiment, str) else experiment
    parameters = inspect.signature(experiment_fn).parameters
    num_seeds = _recorded_value("num_seeds", run.options.get("num_seeds", 1), PositiveInt)
    others = run.options.keys() - parameters.keys() - {"num_seeds", *DEFAULTS}
    if others:
        asked = run.name if experiment is None else f"the experiment that was given for {run.name}"
        own = "" if experiment is None else "give the run's own experiment, or "
        raise UserError(
            f"{asked} has no option {min(others)} any more, which the run was started with; {own}check out "
            "the commit that run.json names"
        )
    kinds = typing.get_type_hints(experiment_fn, include_extras=True)
    options = {
        name: _recorded_value(name, value, kinds.get(name, Any))
        for name, value in run.options.items()
        if name in parameters
    }
    changed = run.code and run.code not in (code_of(experiment_fn), legacy_code_of(experiment_fn))
    warning = f"the code of {run.name} has changed since this run" if changed else ""
    of_run = {name: value for name, value in run.options.items() if name not in parameters}
    made = with_run_options(Definition(experiment_fn, options).build(), of_run)
    return Rebuilt(made, run, num_seeds, warning)


def load_run(
    folder: Path | str,
    experiment: Experiment | Definition | Callable[..., Experiment] | str | None = None,
    *,
    mesh: Mesh | None = None,
) -> Result:
    """Loads a run that was trained earlier, with its metrics, history, variables and predictions.

    The data are not needed. If the run has not finished, the variables are those of its last checkpoint.

    Args:
      folder: the folder of the run, on the disk or gs://BUCKET/FOLDER.
      experiment: the experiment of the run, its function, its NAME or the path of its file. `None` means that
        it is made from run.json, which must name an experiment that is installed beside `dl`.
      mesh: the devices. `None` means all devices.

    Raises:
      UserError: the folder does not hold a run, or the experiment is not known or is another one.
    """
    folder = named_path(folder) if url_of(folder) else expand(Path(folder))
    run = open_run(folder)
    with remembering(run.record, folder):
        if isinstance(experiment, Experiment | Definition):
            made = Definition.of(experiment).build()
            there = run.record or {}
            facts = {"dataset": dataclasses.asdict(made.data.identity), **describe(made)}
            if found := differences(there, {**there, **facts}):
                raise UserError(
                    f"{folder} holds another run ({in_one_line(found)}); pass the experiment of the run"
                )
        else:
            rebuilt = rebuild(folder, experiment)
            made = rebuilt.experiment
            if rebuilt.warning:
                warnings.warn(rebuilt.warning, stacklevel=2)
    return Result(made, run.result or {}, run=run, mesh=mesh or make_mesh())


def _what_to_add(name: str) -> str:
    """Returns a hint for importing code that is not installed."""
    if not all(part.isidentifier() for part in name.split(".")) or len(name) > 80:
        where = "--experiment NAME, or the path of its file"
    elif name == "experiment" or name.startswith("__main__"):  # made by a script or in a notebook
        where = "--experiment PATH, a file that defines the function experiment"
    else:
        where = f"--experiment {name if '.' in name else f'{name}.py'}"
    return f"in Python, pass the experiment to dl.load_run; if you trust its code, add {where}"


def _recorded_value(name: str, value: Any, kind: Any) -> Any:
    """Returns the value of an option in run.json, converted to the type that the experiment takes.

    Raises:
      UserError: the value has another type, or is out of range.
    """
    try:
        made = _as_annotated(value, kind)
    except TypeError:
        raise UserError(
            f"the option {name} is {repr(value)[:80]} in run.json, but must be {type_name(kind)}; correct it"
        ) from None
    check_value(name, kind, made)
    return made


def _as_annotated(value: Any, kind: Any) -> Any:
    """Converts a JSON value to an annotated type; raises TypeError if that is not possible."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return _as_annotated(value, arguments[0])
    if origin in (typing.Union, types.UnionType):
        for argument in arguments:
            with contextlib.suppress(TypeError):
                return _as_annotated(value, argument)
    elif origin is Literal:
        for argument in arguments:
            if type(argument) is type(value) and argument == value:
                return value
    elif inspect.isclass(kind) and issubclass(kind, enum.Enum):
        for member in kind:
            if value in (str(member), member.name):  # the form that `as_recorded` writes
                return member
    elif kind in (None, type(None)) and value is None:
        return None
    elif kind is Path and isinstance(value, str):
        return Path(value)
    elif kind is float and type(value) in (int, float):
        if type(value) is float or abs(value) <= sys.float_info.max:
            return value
    elif kind in (bool, int, str) and type(value) is kind:
        return value
    elif origin in (tuple, list) and isinstance(value, list):
        if origin is list or arguments[1:] == (...,):
            return origin(_as_annotated(item, arguments[0]) for item in value)
        if len(arguments) == len(value):
            return tuple(map(_as_annotated, value, arguments))
    elif kind not in (None, type(None), Path, float, bool, int, str) and origin not in (tuple, list):
        return value  # a type that only the experiment can check
    raise TypeError
