"""Where a run's first variables come from, when not all from its seed: files, or another run.

An `Initial` is asked once, before the first step, and gives a part of the variables (or all).
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax.traverse_util
import numpy as np
from jax.sharding import Mesh

from dl.data.source import Source
from dl.errors import UserError
from dl.models.airbench import whitening_filters
from dl.models.weights.names import NameMap
from dl.models.weights.pretrained import load_pretrained
from dl.types import Variables


@dataclasses.dataclass(frozen=True)
class Context:
    """What an `Initial` may need to know.

    Attributes:
      shapes: of the model's variables.
      folder: of the run.
      mesh: the devices.
    """

    shapes: Variables
    folder: Path
    mesh: Mesh


Initial = Callable[[Context], Variables]


def pretrained(
    source: str | Path, name_map: NameMap, under: str, skip: Sequence[str] = (), **options: Any
) -> Initial:
    """Returns what `load_pretrained(source, ..., name_map, **options)` reads, for the submodule `under`.

    Its modules `skip` are not read: what the model has of them starts from the seed.
    """

    def initial(context: Context) -> Variables:
        shapes = {name: tree[under] for name, tree in context.shapes.items() if under in tree}
        if not shapes:
            known = ", ".join(context.shapes["params"])
            raise UserError(f"under={under!r} is no module of the model, expected one of {known}")
        return nested(load_pretrained(source, shapes, name_map, skip=skip, **options), under, drop=skip)

    return initial


def whitened(source: Source, num_images: int = 5000) -> Initial:
    """Returns the fixed filters of `Airbench`'s first layer, from the first images of a training split."""

    def initial(context: Context) -> Variables:
        images = source[np.arange(min(len(source), num_images))]["image"]
        kernel = whitening_filters(images / np.float32(255))
        return {"params": {"whiten": {"kernel": kernel}}}

    return initial


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
