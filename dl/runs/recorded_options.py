"""Options of a run as run.json holds them, converted back to what the function of the experiment takes."""

import contextlib
import enum
import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from dl.errors import UserError
from dl.experiment import Experiment
from dl.option_types import check_value, type_name
from dl.runs.definition import Definition


def recorded_definition(
    fn: Callable[..., Experiment], recorded: Mapping[str, Any], name: str | None = None
) -> Definition:
    """Returns the definition of an experiment for the options that a run recorded.

    Args:
      fn: the function of the experiment.
      recorded: the options in run.json. Those that the function does not have are left out.
      name: the name of the experiment. `None` means the module of the function.

    Raises:
      UserError: a value has another type, or is out of range.
    """
    kinds = typing.get_type_hints(fn, include_extras=True)
    options = {
        option: recorded_value(option, recorded[option], kinds.get(option, Any))
        for option in recorded
        if option in inspect.signature(fn).parameters
    }
    return Definition(fn, options, name)


def recorded_value(name: str, value: Any, kind: Any) -> Any:
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
