"""Class labels: the shapes and types of labels that the loss and the accuracy of a classifier accept.

Shapes: B examples, C classes. There may be more axes between them, such as the positions of a sequence.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import jax
import jax.numpy as jnp

from dl.errors import UserError

_watched: ContextVar[list[tuple[jax.Array, int]] | None] = ContextVar("watched labels", default=None)


def class_labels(labels: jax.Array, logits_BC: jax.Array) -> jax.Array:
    """Returns labels in a standard form: as classes, or as distributions over the classes.

    Args:
      labels: whole numbers of any type, shape B or B × 1; or distributions, shape B × C.
      logits_BC: the logits that the labels are compared with.

    Returns:
      Classes as int32 of shape B. Distributions are returned unchanged. This function sees no values under
      `jit`, so it cannot check that classes lie in [0, C): `dl.training.batches.check_labels` does.

    Raises:
      UserError: the labels have another shape, or are of shape B but not whole numbers.
    """
    is_whole = jnp.issubdtype(labels.dtype, jnp.integer) or labels.dtype == jnp.bool_
    if labels.shape == logits_BC.shape:
        return labels
    is_column = labels.shape == (*logits_BC.shape[:-1], 1)
    if not is_column and labels.ndim != logits_BC.ndim - 1:
        raise UserError(
            f"labels of shape {labels.shape} do not fit logits of shape {logits_BC.shape}; give one class "
            f"for each row of logits, or one distribution over {logits_BC.shape[-1]} classes"
        )
    if not watch(labels, logits_BC.shape[-1]) and not is_whole:
        raise UserError(
            f"the labels are stored as {labels.dtype}; classes must be whole numbers: convert them by "
            "label.astype(np.int32)"
        )
    return (labels[..., 0] if is_column else labels).astype(jnp.int32)


def watch(labels: jax.Array, num_classes: int) -> bool:
    """Notes numbers that must be classes, or tokens of a vocabulary; returns whether anybody watches."""
    seen = _watched.get()
    if seen is not None:
        seen.append((labels, num_classes))
    return seen is not None


@contextlib.contextmanager
def watched() -> Iterator[list[tuple[jax.Array, int]]]:
    """Collects the labels that `watch` notes meanwhile, and for how many classes."""
    seen: list[tuple[jax.Array, int]] = []
    token = _watched.set(seen)
    try:
        yield seen
    finally:
        _watched.reset(token)


def is_class_label(leaf: jax.ShapeDtypeStruct | None) -> bool:
    """Returns whether a feature of one example can be a class: a whole number of shape () or (1,)."""
    return leaf is not None and leaf.shape in ((), (1,)) and jnp.issubdtype(leaf.dtype, jnp.integer)
