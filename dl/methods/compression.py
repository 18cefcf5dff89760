"""Compression: ways to make a trained model smaller or faster, as a run records them.

A compressed run is the experiment of its parent with a change. The change is a frozen dataclass whose fields
are JSON values, and run.json holds it as the option `compression`. So the run can be loaded, reported,
exported and resumed without its parent. A run that is compressed again records a list, in the order of use::

    pruned = MagnitudePruning(sparsity=0.8)
    experiment = pruned.changed(experiment)            # masks its kernels
    warm_start = pruned.converted(parent.variables)    # what the changed experiment starts from
"""

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from dl.errors import UserError
from dl.experiment import Experiment
from dl.types import Variables

TEACHER = "teacher"  # the entry of a record that names the experiment of another run

ExperimentOf = Callable[[Mapping[str, Any]], Experiment]
"""A function from the record of a teacher to its experiment; see `from_record`."""


@runtime_checkable
class Compression(Protocol):
    """A way to make a trained model smaller: what a run records, and what it changes.

    A class may also have a method `stored(variables)`. It returns the variables as they are written into a
    file for use, such as the integers of a quantised model; see `as_stored`. A class with `is_of_training`
    changes only how the run is trained; see `lasting`.
    """

    def changed(self, experiment: Experiment) -> Experiment:
        """Returns the experiment with the compression; a pure function that needs no parent."""
        ...

    def converted(self, variables: Variables) -> Variables:
        """Returns the trained variables of the parent as the initial variables of the changed experiment."""
        ...


def as_stored(compressions: Sequence[Compression], variables: Variables) -> Variables:
    """Returns the variables of a compressed run as they are written into a file for use."""
    for compression in reversed(compressions):  # the last change is the outermost
        stored = getattr(compression, "stored", None)
        variables = variables if stored is None else stored(variables)
    return variables


def lasting(compressions: Sequence[Compression]) -> list[Compression]:
    """Returns the compressions that a further compression of the run keeps: those that change the model."""
    return [made for made in compressions if not getattr(made, "is_of_training", False)]


def as_record(compression: Compression) -> dict[str, Any]:
    """Returns what run.json records: the name of the method and the fields.

    Fields whose metadata have `{"is_recorded": False}` are left out.
    """
    assert dataclasses.is_dataclass(compression)
    fields = {
        field.name: _json_of(getattr(compression, field.name))
        for field in dataclasses.fields(compression)
        if field.metadata.get("is_recorded", True)
    }
    names = {class_name: method for method, class_name in _methods().items()}
    return {"method": names[type(compression).__name__], **fields}


def from_record(record: Mapping[str, Any], experiment_of: ExperimentOf | None = None) -> Compression:
    """Returns the compression that `as_record` described.

    Args:
      record: an entry of `compression` in run.json, which is not trusted.
      experiment_of: returns the experiment of a teacher. It is called for a record that names one.

    Raises:
      UserError: the method is unknown, or a field is unknown or out of range.
    """
    fields = dict(record) if isinstance(record, Mapping) else {}
    method, methods = fields.pop("method", None), _methods()
    if not isinstance(method, str) or method not in methods:
        raise UserError(
            f"the compression {str(method)[:40]!r} is unknown; this version knows {', '.join(methods)}"
        )
    made: Any = getattr(importlib.import_module(f"dl.methods.{method}"), methods[method])
    known = {f.name for f in dataclasses.fields(made) if f.metadata.get("is_recorded", True)}
    if others := fields.keys() - known:
        raise UserError(
            f"the compression {method} has no field {str(min(others))[:40]!r}; it has {', '.join(known)}"
        )
    values = {name: _tuples_of(value) for name, value in fields.items()}
    if experiment_of is not None and values.get(TEACHER) is not None:
        values["teacher_experiment"] = experiment_of(values[TEACHER])
    try:
        return made(**values)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"the compression {method} of the run is damaged ({' '.join(str(error).split())[:100]}); restore "
            "run.json"
        ) from None


def records_of(recorded: Any) -> list[Mapping[str, Any]]:
    """Returns the records in the option `compression` of a run: none, one or several.

    Raises:
      UserError: the option is damaged.
    """
    records = [recorded] if isinstance(recorded, Mapping) else recorded or []
    if not isinstance(records, list | tuple) or not all(isinstance(record, Mapping) for record in records):
        raise UserError(
            f"compression={str(recorded)[:60]!r} is not a record of a compression; restore run.json"
        )
    return list(records)


def _methods() -> dict[str, str]:
    """Returns the class of each method. Its module in `dl.methods` has the name of the method."""
    return {
        "magnitude_pruning": "MagnitudePruning",
        "structured_pruning": "StructuredPruning",
        "low_rank": "LowRank",
        "quantization": "Quantization",
        "distillation": "Distillation",
        "no_training": "NoTraining",
    }


def _json_of(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _json_of(item) for name, item in value.items()}
    return [_json_of(item) for item in value] if isinstance(value, tuple | list) else value


def _tuples_of(value: Any) -> Any:
    """Returns a JSON value with tuples in place of lists, as the fields of a frozen dataclass hold them."""
    if isinstance(value, Mapping):
        return {str(name): _tuples_of(item) for name, item in value.items()}
    return tuple(map(_tuples_of, value)) if isinstance(value, tuple | list) else value
