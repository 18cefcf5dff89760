"""Warm starts: initial variables of a run from files, from a tree of arrays, or from another experiment.

A warm start holds some or all of the variables. The others are initialised at random.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.traverse_util

from dl.errors import UserError
from dl.freezing import constants_of
from dl.types import Params, Variables


@dataclasses.dataclass(frozen=True)
class FromExperiment:
    """The final variables of another experiment, such as a backbone, a teacher or an earlier stage.

    The other experiment is trained when a run needs it for the first time. Later runs reuse its result.

    Attributes:
      fn: the function of the other experiment.
      options: the options of the function. Options that are not given have their defaults.
      convert: function from the variables of the other experiment to those of this one, such as `nested`.
    """

    fn: Callable[..., Any]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    convert: Callable[[Variables], Variables] = lambda variables: variables


WarmStart = FromExperiment | Variables | Callable[[Variables], Variables]
"""A warm start: another experiment, variables, or a function from the shapes of the model to variables."""


ADAPTERS = ("lora_a", "lora_b")
"""Names of the parameters that `methods.lora` puts beside a kernel. Weights of other models lack them."""


def without_adapters(params: Params) -> Params:
    """Returns nested dicts of parameters, or of their shapes, without the adapters of `methods.lora`."""
    leaves = flax.traverse_util.flatten_dict(params)
    return flax.traverse_util.unflatten_dict(
        {path: leaf for path, leaf in leaves.items() if path[-1] not in ADAPTERS}
    )


def nested(variables: Variables, under: str, drop: Sequence[str] = ()) -> Variables:
    """Returns the variables of a model as variables of the submodule `under` of another model.

    Args:
      variables: variables of a model.
      under: name of the submodule.
      drop: names of modules whose variables are left out.
    """
    return {
        name: {under: {module: leaves for module, leaves in tree.items() if module not in drop}}
        for name, tree in variables.items()
    }


def check_has_constants(start: Variables, shapes: Variables) -> None:
    """Raises UserError if the model reads constants, such as a teacher's, that the warm start lacks."""
    given = flax.traverse_util.flatten_dict(constants_of(start), sep="/")
    for name in flax.traverse_util.flatten_dict(constants_of(shapes), sep="/"):
        if name not in given:
            raise UserError(
                f"the task reads {name}, which the warm start does not give; set warm_start, such as "
                "dl.methods.distillation.from_teacher(...)"
            )


def check_fits(start: Variables, shapes: Variables) -> None:
    """Raises UserError for the first variable that the model does not have, or has with another shape."""
    known = flax.traverse_util.flatten_dict(dict(shapes), sep="/")
    for name, leaf in flax.traverse_util.flatten_dict(dict(start), sep="/").items():
        if name not in known:
            raise UserError(
                f"the warm start gives the variable {name}, which the model does not have; remove or rename "
                "it"
            )
        if leaf.shape != known[name].shape:
            raise UserError(
                f"the warm start gives {name} with shape {leaf.shape}, and the model has it with shape "
                f"{known[name].shape}; remove it or change the model"
            )
