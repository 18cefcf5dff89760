"""Explanations by the gradient of a score with respect to the input.

Shapes: N examples, B examples or noisy copies of a batch, C classes.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from dl.analysis.attributions.rewriting import Operand, calls_relu, evaluate, is_call, is_relu, rewritten
from dl.analysis.attributions.scoring import (
    Score,
    batch_size_of,
    concatenated,
    floats_of,
    in_batches,
    partial_of,
    selected,
    targets_of,
)
from dl.errors import UserError
from dl.ranges import NON_NEGATIVE, STEPS, check, check_count


def gradient(score: Score, inputs: Any, targets: Any = None, *, batch_size: int | None = None) -> np.ndarray:
    """Returns the gradient of the target's score with respect to the input (Simonyan et al. 2014, section 3).

    Args:
      score: the score, from inputs (B, …) to (B, C).
      inputs: N examples, floats of shape (N, …).
      targets: index of the score to explain, one or (N,). `None` means the highest score of each example.
      batch_size: number of examples in memory. `None` chooses it by the size of the activations.

    Returns:
      Gradients of the shape of the inputs.

    Raises:
      UserError: the inputs are not floats, or a target is not the index of a score.
    """
    score, inputs = partial_of(score), floats_of(inputs)
    size = batch_size_of(score, inputs, batch_size)
    targets_N = targets_of(score, inputs, targets, size)
    parts = (_gradients(score, *slices) for slices, _ in in_batches(size, inputs, targets_N))
    return concatenated(parts)[: len(inputs)]


def gradient_times_input(
    score: Score, inputs: Any, targets: Any = None, *, batch_size: int | None = None
) -> np.ndarray:
    """Returns the product of gradient and input (Shrikumar et al. 2016). See `gradient` for the arguments."""
    inputs = floats_of(inputs)
    return inputs * gradient(score, inputs, targets, batch_size=batch_size)


def guided_backpropagation(
    score: Score, inputs: Any, targets: Any = None, *, batch_size: int | None = None
) -> np.ndarray:
    """Returns the gradient in which a ReLU passes positive gradients only (Springenberg et al. 2015).

    It resembles the input also where the parameters are random (Adebayo et al. 2018). See `gradient` for the
    arguments. The ReLUs are found in the traced function, so that no model is changed.

    Raises:
      UserError: there is no ReLU, or one lies inside of a loop.
    """
    score = partial_of(score)
    return gradient(Partial(_guided, score), inputs, targets, batch_size=batch_size)


def smooth_grad(
    score: Score,
    inputs: Any,
    targets: Any = None,
    *,
    noise: float = 0.15,
    num_samples: int = 32,
    seed: int = 0,
    batch_size: int | None = None,
) -> np.ndarray:
    """Returns the mean gradient of noisy copies of the input (Smilkov et al. 2017, section 3).

    All examples get the same noise, so that an example is explained alike alone and among others.

    Args:
      score: the score, from inputs (B, …) to (B, C).
      inputs: N examples, floats of shape (N, …).
      targets: index of the score to explain, one or (N,). `None` means the highest score of each example.
      noise: standard deviation of the noise as a share of the example's range, its maximum minus its minimum.
      num_samples: number of noisy copies.
      seed: random seed of the noise.
      batch_size: number of copies in memory. `None` chooses it by the size of the activations.

    Raises:
      UserError: an argument is out of range.
    """
    score, inputs = partial_of(score), floats_of(inputs)
    check("noise", noise, NON_NEGATIVE)
    num_samples = check_count("num_samples", num_samples, STEPS)
    size = batch_size_of(score, inputs, batch_size)
    targets_N = targets_of(score, inputs, targets, size)
    key, samples = jax.random.key(seed), np.arange(num_samples)

    def explained(example: np.ndarray, target: np.int32) -> np.ndarray:
        total = np.zeros(example.shape)
        for (part,), count in in_batches(size, samples):
            weights = (np.arange(size) < count).astype(np.float32)
            total += _noisy_gradients(score, example, target, key, part, np.float32(noise), weights)
        return (total / num_samples).astype(example.dtype)

    return np.stack([explained(*pair) for pair in zip(inputs, targets_N, strict=True)])


def weighted_gradients(
    score: Partial, points_B: jax.Array, target: jax.Array, weights_B: jax.Array
) -> jax.Array:
    """Returns the gradients of one target at several points, each times a weight, shape (B, …)."""
    targets_B = jnp.full(weights_B.shape, target)
    return jax.grad(lambda points: (weights_B * selected(score(points), targets_B)).sum())(points_B)


@jax.jit
def _gradients(score: Partial, inputs_B: jax.Array, targets_B: jax.Array) -> jax.Array:
    return jax.grad(lambda inputs_B: selected(score(inputs_B), targets_B).sum())(inputs_B)


@jax.jit
def _noisy_gradients(
    score: Partial,
    example: jax.Array,
    target: jax.Array,
    key: jax.Array,
    samples_B: jax.Array,
    noise: jax.Array,
    weights_B: jax.Array,
) -> jax.Array:
    deviation = noise * (example.max() - example.min())

    def noisy(sample: jax.Array) -> jax.Array:
        drawn = jax.random.normal(jax.random.fold_in(key, sample), example.shape, example.dtype)
        return example + deviation.astype(example.dtype) * drawn

    return weighted_gradients(score, jax.vmap(noisy)(samples_B), target, weights_B).sum(0)


def _guided(score: Partial, inputs_B: jax.Array) -> jax.Array:
    has_relu = False

    def rule(equation: Any, *operands: Operand) -> list[Any] | None:
        nonlocal has_relu
        if is_relu(equation):
            has_relu = True
            return [_guided_relu(operands[0].value)]
        if not calls_relu(equation.params):
            return evaluate(equation, operands)
        if not is_call(equation):
            raise UserError(
                f"guided backpropagation does not reach the ReLU inside of {equation.primitive.name}; write "
                "the layers one after the other, or choose another explanation"
            )
        return None

    scores_BC = rewritten(score, rule)(inputs_B).value
    if not has_relu:
        raise UserError(
            "the score has no ReLU, so that guided backpropagation is the gradient; choose gradient"
        )
    return scores_BC


@jax.custom_vjp
def _guided_relu(x: jax.Array) -> jax.Array:
    return jnp.maximum(x, 0)


def _guided_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.maximum(x, 0), x > 0


def _guided_backward(is_on: jax.Array, gradients: jax.Array) -> tuple[jax.Array]:
    return (jnp.where(is_on, jnp.maximum(gradients, 0), 0),)


_guided_relu.defvjp(_guided_forward, _guided_backward)
