"""Where a run's first variables come from, when not all from its seed: files, or another run.

A `WarmStart` is asked once, before the first step, and gives a part of the variables (or all).
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import flax.traverse_util
from jax.sharding import Mesh

from dl.errors import UserError
from dl.types import Variables


@dataclasses.dataclass(frozen=True)
class Context:
    """What a `WarmStart` may need to know.

    Attributes:
      shapes: of the model's variables.
      folder: of the run.
      mesh: the devices.
    """

    shapes: Variables
    folder: Path
    mesh: Mesh


WarmStart = Callable[[Context], Variables]


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
