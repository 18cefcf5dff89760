"""Parameters of stacks of layers in both forms: one module for each layer, or one with a leading axis.

A `Stack` that scans its layers has the parameters `layer/…` with a leading axis of layers. One that does not
has `layer0/…`, `layer1/…` and so on.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dl.errors import UserError
from dl.types import Params


def is_stacked(params: Params) -> bool:
    """Returns whether the parameters, or their shapes, are those of a model that scans its layers."""
    return any("layer" in path for path in flatten_dict(params))


def stack_layers(params: Params) -> Params:
    """Returns the parameters of a model without a scan as those of the model with `is_scanned=True`.

    Raises:
      UserError: two layers have different parameters, so that they cannot be stacked.
    """
    stacks: dict[tuple[str, ...], dict[int, Any]] = {}
    stacked: dict[tuple[str, ...], Any] = {}
    for path, leaf in flatten_dict(params).items():
        at = next((at for at, name in enumerate(path) if re.fullmatch(r"layer\d+", name)), None)
        if at is None:
            stacked[path] = leaf
        else:
            number = int(path[at].removeprefix("layer"))
            stacks.setdefault((*path[:at], "layer", *path[at + 1 :]), {})[number] = leaf
    for path, leaves in stacks.items():
        if sorted(leaves) != list(range(len(leaves))) or len({leaf.shape for leaf in leaves.values()}) > 1:
            raise UserError(
                f"the layers cannot be stacked, because {'/'.join(path)} differs between them or is missing "
                "in one; use is_scanned=False"
            )
        in_order = [leaves[number] for number in range(len(leaves))]
        stack = jnp.stack if isinstance(in_order[0], jax.Array) else np.stack
        stacked[path] = stack(in_order)
    return unflatten_dict(stacked)


def unstack_layers(params: Params) -> Params:
    """Returns the parameters of a model that scans its layers as those of the model without a scan."""
    unstacked: dict[tuple[str, ...], Any] = {}
    for path, leaf in flatten_dict(params).items():
        if "layer" not in path:
            unstacked[path] = leaf
            continue
        at = path.index("layer")
        for number in range(len(leaf)):
            unstacked[*path[:at], f"layer{number}", *path[at + 1 :]] = leaf[number]
    return unflatten_dict(unstacked)
