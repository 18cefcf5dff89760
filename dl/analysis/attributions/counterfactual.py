"""Counterfactuals: the nearest input of another class (Wachter et al. 2018, eq. 1 and 2).

Shapes: N examples, B examples of a batch, P prices, C classes.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from dl.analysis.attributions.scoring import (
    Score,
    batch_size_of,
    concatenated,
    floats_of,
    in_batches,
    num_scores,
    partial_of,
    targets_of,
)
from dl.errors import UserError
from dl.ranges import NON_NEGATIVE, POSITIVE, STEPS, check, check_count

_PRICES = (0.0, 0.2, 0.4, 0.6, 0.8, 0.95)  # of a change, beside the steepest slope of the score


class Counterfactuals(NamedTuple):
    """Inputs near the given ones that have another class.

    Attributes:
      inputs: the nearest ones that were found; the given ones where none was, shape of the inputs.
      is_found: where one was found, bool, shape (N,).
      distances: sum of the changes in units of the scale, shape (N,). Infinite where none was found.
    """

    inputs: np.ndarray
    is_found: np.ndarray
    distances: np.ndarray


def counterfactuals(
    score: Score,
    inputs: Any,
    classes: Any,
    *,
    scale: Any = 1.0,
    low: float = -np.inf,
    high: float = np.inf,
    margin: float = 0.01,
    num_steps: int = 300,
    learning_rate: float = 0.02,
    batch_size: int | None = None,
) -> Counterfactuals:
    """Returns the nearest inputs of another class that gradient descent finds.

    Proximal gradient steps descend max(0, margin − (score of the class − highest other score)) +
    price × Σ |change| / scale, for six prices, which are relative to the steepest slope of the first term.
    The nearest input of the class on all ways is returned. A higher price changes fewer features.

    Args:
      score: the score, from inputs (B, …) to logits (B, C) of at least two classes.
      inputs: N examples, floats of shape (N, …).
      classes: the class that each input is to get, one or (N,).
      scale: what a change of one counts as, one or the shape of an example, such as the median absolute
        deviation in the training split, which the authors use.
      low: the smallest value allowed.
      high: the largest value allowed.
      margin: how far the score of the class must be above all others.
      num_steps: number of steps for each price.
      learning_rate: the largest change of a feature in a step, in units of the scale.
      batch_size: number of copies in memory. `None` chooses it by the size of the activations.

    Raises:
      UserError: an argument is out of range.
    """
    score, inputs = partial_of(score), floats_of(inputs)
    num_steps = check_count("num_steps", num_steps, STEPS)
    check("margin", margin, NON_NEGATIVE)
    check("learning_rate", learning_rate, POSITIVE)
    if num_scores(score, inputs) < 2:
        raise UserError("the model has one score; counterfactuals need at least two classes")
    scales = np.broadcast_to(np.asarray(scale, inputs.dtype), inputs.shape[1:])
    if not (scales > 0).all() or not low < high:
        raise UserError("scale must be positive, and low less than high")
    size = batch_size_of(score, inputs, batch_size)
    classes_N = targets_of(score, inputs, classes, size)
    limits = np.array([low, high, margin, learning_rate], np.float32)
    rows = np.repeat(np.arange(len(inputs)), len(_PRICES))
    prices = np.tile(np.array(_PRICES, np.float32), len(inputs))
    parts = [
        _descend(score, num_steps, inputs[rows_B], classes_N[rows_B], prices_B, scales, limits)
        for (rows_B, prices_B), _ in in_batches(size, rows, prices)
    ]
    nearest, distances = (concatenated(part)[: len(rows)] for part in zip(*parts, strict=True))
    distances_NP = distances.reshape(len(inputs), -1)
    best_N = distances_NP.argmin(1)
    found = nearest.reshape(len(inputs), len(_PRICES), *inputs.shape[1:])[np.arange(len(inputs)), best_N]
    distances_N = distances_NP.min(1)
    return Counterfactuals(found, np.isfinite(distances_N), distances_N)


def _margins(scores_BC: jax.Array, classes_B: jax.Array) -> jax.Array:
    """Returns how far the score of the class is above the highest other one."""
    is_class = jnp.arange(scores_BC.shape[1])[None] == classes_B[:, None]
    own_B = jnp.where(is_class, scores_BC, -jnp.inf).max(1)
    return own_B - jnp.where(is_class, -jnp.inf, scores_BC).max(1)


@functools.partial(jax.jit, static_argnums=1)
def _descend(
    score: Partial,
    num_steps: int,
    inputs_B: jax.Array,
    classes_B: jax.Array,
    prices_B: jax.Array,
    scales: jax.Array,
    limits: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    low, high, margin, learning_rate = limits.astype(inputs_B.dtype)
    axes, ones = tuple(range(1, inputs_B.ndim)), (-1,) + (1,) * (inputs_B.ndim - 1)

    def moved(changes_B: jax.Array) -> jax.Array:
        return jnp.clip(inputs_B + scales[None] * changes_B, low, high)

    def shortfall(changes_B: jax.Array) -> tuple[jax.Array, jax.Array]:
        margins_B = _margins(score(moved(changes_B)), classes_B)
        return jnp.maximum(0, margin - margins_B).sum(), margins_B

    def step(carry: Any, _: None) -> tuple[Any, None]:
        changes_B, nearest_B, distances_B = carry
        (_, margins_B), gradients_B = jax.value_and_grad(shortfall, has_aux=True)(changes_B)
        lengths_B = (jnp.abs(moved(changes_B) - inputs_B) / scales[None]).sum(axes)
        is_better = (margins_B >= margin) & (lengths_B < distances_B)
        nearest_B = jnp.where(is_better.reshape(ones), moved(changes_B), nearest_B)
        distances_B = jnp.where(is_better, lengths_B, distances_B)
        steepest_B = jnp.abs(gradients_B).max(axes, keepdims=True)
        changes_B -= learning_rate * gradients_B / jnp.where(steepest_B > 0, steepest_B, 1)
        shrink_B = learning_rate * prices_B.reshape(ones)
        changes_B = jnp.sign(changes_B) * jnp.maximum(0, jnp.abs(changes_B) - shrink_B)
        return (changes_B, nearest_B, distances_B), None

    infinite_B = jnp.full(inputs_B.shape[0], jnp.inf, inputs_B.dtype)
    start = (jnp.zeros_like(inputs_B), inputs_B, infinite_B)
    (_, nearest_B, distances_B), _ = jax.lax.scan(step, start, None, num_steps + 1)
    return nearest_B, distances_B
