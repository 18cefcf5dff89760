"""Rows of a cache: a cache is a tree of arrays, and each array has one axis of rows somewhere."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dl.task.decoder import Cache

Axes = Any
"""A tree like a cache, with the axis of the rows in place of each array."""


def row_axes(empty: Callable[[int], Cache]) -> Axes:
    """Returns the axis of the rows of each array.

    Args:
      empty: function from a number of rows to an empty cache. Nothing is computed.
    """
    two, three = (jax.eval_shape(lambda n=n: empty(n)) for n in (2, 3))

    def differing(x: Any, y: Any) -> int:
        (axis,) = (k for k, (m, n) in enumerate(zip(x.shape, y.shape, strict=True)) if m != n)
        return axis

    return jax.tree.map(differing, two, three)


def put_row(cache: Cache, row: Cache, index: jax.Array, axes: Axes) -> Cache:
    """Returns a cache in which row `index` is the row of a cache of one row."""

    def put(whole: jax.Array, part: jax.Array, axis: int) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(whole, part.astype(whole.dtype), index, axis)

    return jax.tree.map(put, cache, row, axes)


def take_rows(cache: Cache, indices_R: jax.Array, axes: Axes) -> Cache:
    """Returns the cache of the rows with these indices, in this order."""
    return jax.tree.map(lambda whole, axis: jnp.take(whole, indices_R, axis), cache, axes)
