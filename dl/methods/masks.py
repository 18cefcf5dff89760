"""Masks of weights: which are kept, by their magnitude.

A mask is True where a weight is kept. Masks are in a dict by the path of the kernel, such as `conv/kernel`.
"""

import re
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dl.errors import UserError
from dl.types import Params

Masks = dict[str, jax.Array]


def masked(params: Params, masks: Masks) -> Params:
    """Returns the parameters, 0 where a mask is False."""
    leaves = flatten_dict(dict(params), sep="/")
    for name, mask in masks.items():
        leaves[name] = jnp.where(mask, leaves[name], jnp.zeros((), leaves[name].dtype))
    return unflatten_dict(leaves, sep="/")


def kernels_of(params: Params, names: Sequence[str]) -> dict[str, jax.Array]:
    """Returns the parameters at the paths."""
    leaves = flatten_dict(dict(params), sep="/")
    return {name: leaves[name] for name in names}


def smallest_removed(
    kernels: Mapping[str, jax.Array], counts: jax.Array, before: Masks | None = None
) -> Masks:
    """Returns masks that remove the weights of smallest magnitude.

    Weights that are removed already are removed first. Of equal ones the first are removed.

    Args:
      kernels: the weights by the path of their kernel.
      counts: number of weights to remove, int32: of all kernels together, shape (1,), or of each one.
      before: the present masks. `None` means that no weight is removed.
    """
    sizes = {name: jnp.abs(kernel.astype(jnp.float32)) for name, kernel in kernels.items()}
    if before is not None:
        sizes = {name: jnp.where(before[name], size, -1.0) for name, size in sizes.items()}
    if len(counts) == len(sizes):
        return {
            name: (_ranks(size.ravel()) >= counts[at]).reshape(size.shape)
            for at, (name, size) in enumerate(sizes.items())
        }
    kept = _ranks(jnp.concatenate([size.ravel() for size in sizes.values()])) >= counts[0]
    ends = np.cumsum([size.size for size in sizes.values()])
    parts = jnp.split(kept, ends[:-1])
    return {name: part.reshape(size.shape) for part, (name, size) in zip(parts, sizes.items(), strict=True)}


def _ranks(values: jax.Array) -> jax.Array:
    """Returns the number of values that come before each one in a stable sort."""
    order = jnp.argsort(values, stable=True)
    return jnp.zeros(len(values), jnp.int32).at[order].set(jnp.arange(len(values), dtype=jnp.int32))


def n_of_m_kept(kernel: jax.Array, kept: int, of: int) -> jax.Array:
    """Returns which weights are the largest `kept` of each `of` consecutive inputs, the last axis but one."""
    sizes = jnp.abs(kernel)
    *outer, inputs, outputs = sizes.shape
    blocks = jnp.moveaxis(sizes.reshape(*outer, inputs // of, of, outputs), -2, -1)
    order = jnp.argsort(jnp.argsort(-blocks, axis=-1, stable=True), axis=-1, stable=True)
    return jnp.moveaxis(order < kept, -1, -2).reshape(sizes.shape)


def check_patterns(option: str, patterns: Sequence[str], params: Params) -> None:
    """Raises UserError if a pattern matches no parameter."""
    names = list(flatten_dict(dict(params), sep="/"))
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in names):
            raise UserError(
                f"{option}: the pattern {pattern!r} matches no parameter; paths look like "
                f"{names[0] if names else None}"
            )
