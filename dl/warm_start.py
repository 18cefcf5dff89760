"""Where a run's first variables come from, when not all from its seed: files, an array tree, or another run.

A start is a part of the variables, or all of them; what it lacks is initialised.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.traverse_util

from dl.errors import UserError
from dl.types import Variables


@dataclasses.dataclass(frozen=True)
class FromExperiment:
    """The variables that another experiment ends with: a backbone, a teacher, an earlier stage.

    It is trained when a run first asks for it, and found again by later runs that ask for the same.

    Attributes:
      fn: the function of the other experiment.
      options: of the function; one that is left out has its default.
      convert: from its variables to those of the model that asks, such as a `nested`.
    """

    fn: Callable[..., Any]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    convert: Callable[[Variables], Variables] = lambda variables: variables


WarmStart = FromExperiment | Variables | Callable[[Variables], Variables]
"""What an `Experiment` may start from: another experiment, variables, or a function of the model's shapes."""


def nested(variables: Variables, under: str, drop: Sequence[str] = ()) -> Variables:
    """Returns the variables of a model as those of the submodule `under` of another, without `drop`."""
    return {
        name: {under: {module: leaves for module, leaves in tree.items() if module not in drop}}
        for name, tree in variables.items()
    }


def check_fits(start: Variables, shapes: Variables) -> None:
    """Raises UserError, naming the first, if the model has no such variable or it has another shape."""
    known = flax.traverse_util.flatten_dict(dict(shapes), sep="/")
    for name, leaf in flax.traverse_util.flatten_dict(dict(start), sep="/").items():
        if name not in known:
            raise UserError(f"the model has no variable {name} to start from a given value")
        if leaf.shape != known[name].shape:
            raise UserError(
                f"the value given for {name} has shape {leaf.shape}, the model's has {known[name].shape}"
            )
