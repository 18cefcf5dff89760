"""What every explanation is computed from: the scores of a model, in batches of one size.

Shapes: N examples, B examples or perturbed copies of a batch, S perturbed copies of one example, K
backgrounds, C classes.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from dl.errors import UserError
from dl.flops import inner_jaxprs
from dl.ranges import STEPS, check_count

Score = Callable[[jax.Array], jax.Array]
"""A pure function from inputs (B, …) to scores (B, C), in which a row depends on its own input only.

`jax.tree_util.Partial(model.apply, variables)` is one that is compiled once also for other variables.
"""

MAX_BATCH = 16
MAX_BYTES = 2**28  # of the activations of a batch, and as much again for their gradients


def partial_of(score: Score) -> Partial:
    """Returns a score as an argument of a compiled program."""
    return score if isinstance(score, Partial) else Partial(score)


def num_scores(score: Partial, inputs: np.ndarray) -> int:
    """Returns C.

    Raises:
      UserError: there are no inputs, or the score does not return one row for each input.
    """
    if not len(inputs):
        raise UserError("inputs is empty; give at least one example")
    leaves, structure = jax.tree.flatten(score)
    shapes = tuple((np.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
    return _measure(structure, shapes, inputs.shape[1:], inputs.dtype)[0]


def batch_size_of(score: Partial, inputs: np.ndarray, batch_size: int | None) -> int:
    """Returns the given batch size, or one with which all activations of the score fit into 256 MiB.

    It depends on the score and the shape of an example, not on the number of examples, so that one compiled
    program explains any number of examples.
    """
    if batch_size is not None:
        return check_count("batch_size", batch_size, STEPS)
    leaves, structure = jax.tree.flatten(score)
    shapes = tuple((np.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
    num_bytes = _measure(structure, shapes, inputs.shape[1:], inputs.dtype)[1]
    return int(min(MAX_BATCH, max(1, MAX_BYTES // max(1, num_bytes))))


def targets_of(score: Partial, inputs: np.ndarray, targets: Any, batch_size: int) -> np.ndarray:
    """Returns the class to explain of each example, shape (N,); by default the one of the highest score.

    Raises:
      UserError: a target is not the index of a score.
    """
    num_classes = num_scores(score, inputs)
    if targets is None:
        return scores_of(score, inputs, batch_size).argmax(-1).astype(np.int32)
    given = np.asarray(targets)
    if given.dtype.kind not in "iu" or given.shape not in ((), (len(inputs),)):
        raise UserError(
            f"targets has the shape {given.shape} and the dtype {given.dtype}; it must be one whole "
            f"number, or one for each of the {len(inputs)} inputs"
        )
    if given.min() < 0 or given.max() >= num_classes:
        raise UserError(
            f"targets has values from {given.min()} to {given.max()}; the model has {num_classes} scores, so "
            f"they must lie between 0 and {num_classes - 1}"
        )
    return np.broadcast_to(given, (len(inputs),)).astype(np.int32)


def scores_of(score: Partial, inputs: np.ndarray, batch_size: int) -> np.ndarray:
    """Returns the scores of all examples, shape (N, C)."""
    return concatenated(_scores(score, *parts) for parts, _ in in_batches(batch_size, inputs))[: len(inputs)]


def in_batches(batch_size: int, *arrays: np.ndarray) -> Iterator[tuple[list[np.ndarray], int]]:
    """Yields slices of arrays of equal length, and how many of their rows count.

    The last slice is filled with copies of its last row, so that one compiled program serves all slices.
    """
    length = len(arrays[0])
    for start in range(0, length, batch_size):
        rows = np.minimum(np.arange(start, start + batch_size), length - 1)
        yield [array[rows] for array in arrays], min(batch_size, length - start)


def concatenated(parts: Any) -> np.ndarray:
    """Returns the rows of all parts as one NumPy array."""
    return np.concatenate([np.asarray(part) for part in parts])


def masked_scores(
    score: Partial,
    example: np.ndarray,
    backgrounds: np.ndarray,
    keep: Callable[[np.ndarray], np.ndarray],
    num_masks: int,
    batch_size: int,
) -> np.ndarray:
    """Returns the scores of one example with parts of it replaced, meaned over the backgrounds.

    Args:
      score: the score.
      example: the example, without an axis of the batch.
      backgrounds: what replaces the parts, shape (K, …).
      keep: returns for rows of masks what each keeps of the example, bool, (B, …), broadcast to the example.
      num_masks: number of masks, S.
      batch_size: number of copies in memory.

    Returns:
      Scores of shape (S, C) in float64.
    """
    parts = [
        np.asarray(_masked_scores(score, example, backgrounds, keep(rows)))
        for (rows,), _ in in_batches(batch_size, np.arange(num_masks))
    ]
    return np.concatenate(parts)[:num_masks].astype(np.float64)


def backgrounds_of(background: Any, inputs: np.ndarray) -> np.ndarray:
    """Returns backgrounds of shape (K, …) from a number, one example or several examples.

    Raises:
      UserError: the shape is another one.
    """
    given, shape = np.asarray(background), inputs.shape[1:]
    given = np.broadcast_to(given, (1, *shape)) if given.ndim <= len(shape) and _fits(given, shape) else given
    if given.shape[1:] != shape or not len(given):
        raise UserError(
            f"the background has the shape {given.shape}; it must be a number, an example of shape {shape}, "
            "or several of them"
        )
    return np.ascontiguousarray(given.astype(inputs.dtype))


def floats_of(inputs: Any) -> np.ndarray:
    """Returns inputs as an array that a gradient exists for.

    Raises:
      UserError: they are whole numbers, such as tokens.
    """
    array = np.asarray(inputs)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise UserError(
            f"inputs has the dtype {array.dtype}, which has no gradient; give floats, such as embeddings of "
            "tokens or scaled pixels"
        )
    return array if array.dtype != np.float64 else array.astype(np.float32)


def selected(scores_BC: jax.Array, targets_B: jax.Array) -> jax.Array:
    """Returns the score of each example's target, shape (B,)."""
    return jnp.take_along_axis(scores_BC, targets_B[:, None], -1)[:, 0]


@jax.jit
def _scores(score: Partial, inputs_B: jax.Array) -> jax.Array:
    return score(inputs_B)


@jax.jit
def _masked_scores(
    score: Partial, example: jax.Array, backgrounds_K: jax.Array, keep_B: jax.Array
) -> jax.Array:
    def add(total_BC: jax.Array, background: jax.Array) -> tuple[jax.Array, None]:
        shape = (keep_B.shape[0], *example.shape)
        copies = jnp.where(jnp.broadcast_to(keep_B, shape), example[None], background[None])
        return total_BC + score(copies).astype(jnp.float32), None

    copies = jax.ShapeDtypeStruct((keep_B.shape[0], *example.shape), example.dtype)
    zero_BC = jnp.zeros(jax.eval_shape(score, copies).shape, jnp.float32)
    return jax.lax.scan(add, zero_BC, backgrounds_K)[0] / backgrounds_K.shape[0]


@functools.lru_cache(maxsize=64)
def _measure(structure: Any, shapes: Any, shape: tuple[int, ...], dtype: Any) -> tuple[int, int]:
    """Returns C, and the bytes of all values that the score of one example makes."""
    score = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*leaf) for leaf in shapes])
    example = jax.ShapeDtypeStruct((1, *shape), dtype)
    traced = jax.jit(lambda score, example: score(example)).trace(score, example)
    outputs = traced.out_info
    if not hasattr(outputs, "shape") or len(outputs.shape) != 2 or outputs.shape[0] != 1:
        raise UserError(
            f"the score of one example is {outputs}; it must have the shape (1, number of classes)"
        )
    return outputs.shape[1], _num_bytes(traced.jaxpr)


def _num_bytes(jaxpr: Any) -> int:
    total = 0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        inner = sum(_num_bytes(body) for body in inner_jaxprs(equation.params))
        own = sum(v.aval.size * v.aval.dtype.itemsize for v in equation.outvars)
        total += times * inner if inner else own
    return total


def _fits(array: np.ndarray, shape: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(array.shape, shape) == shape
    except ValueError:
        return False
