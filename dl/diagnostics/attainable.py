"""The attainable loss on one batch: with the best outputs, and with the best outputs that ignore the input.

The outputs of the model are free variables of the minimisation, so the result holds for any loss: label
smoothing, mixtures of examples, regression in any unit, negative log-likelihoods below 0.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dl.outermost import around_outermost

NUM_ITERATIONS = 200
CONVERGED = 1e-3  # norm of the gradient at the end, relative to the start


@dataclasses.dataclass(frozen=True)
class Attainable:
    """Attainable losses of one batch.

    Attributes:
      best: the loss with the best outputs. `None` if there is no lowest loss, as for a density.
      constant: the loss with the best outputs that are equal for all examples. `None` if there is none.
    """

    best: float | None
    constant: float | None


def attainable(loss: Callable[[], tuple[jax.Array, jax.Array]]) -> Attainable | None:
    """Minimises a loss over the outputs of the model that it calls.

    Args:
      loss: calls models, and returns the minimised loss and the reported loss. The reported loss is taken at
        the minimum of the minimised loss.

    Returns:
      The losses; `None` if `loss` does not call a model.
    """
    outputs: list[Any] = []

    def keep(call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        outputs.append(call(*args, **kwargs))
        return outputs[-1]

    def seen() -> tuple[jax.Array, jax.Array]:
        outputs.clear()
        with around_outermost(keep):
            return loss()

    jax.eval_shape(seen)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), outputs)
    if not jax.tree.leaves(shapes):
        return None

    def of_outputs(values: Any) -> tuple[jax.Array, jax.Array]:
        full = jax.tree.map(lambda value, leaf: jnp.broadcast_to(value, leaf.shape), values, shapes)
        in_turn = iter(full)
        with around_outermost(lambda call, args, kwargs: next(in_turn)):
            return loss()

    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), shapes)
    alike = jax.tree.map(
        lambda leaf: jnp.zeros((1, *leaf.shape[1:]) if leaf.ndim else (), jnp.float32), shapes
    )
    return Attainable(_minimum(of_outputs, zeros), _minimum(of_outputs, alike))


def _minimum(loss: Callable[[Any], tuple[jax.Array, jax.Array]], start: Any) -> float | None:
    """Returns the reported loss at the minimum that L-BFGS finds; `None` if it does not converge."""

    def minimised(values: Any) -> jax.Array:
        return loss(values)[0]

    optimizer = optax.lbfgs()

    def step(carry: Any, _: None) -> Any:
        values, state = carry
        value, gradient = optax.value_and_grad_from_state(minimised)(values, state=state)
        updates, state = optimizer.update(
            gradient, state, values, value=value, grad=gradient, value_fn=minimised
        )
        return (optax.apply_updates(values, updates), state), None

    @jax.jit
    def run(start: Any) -> Any:
        (values, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), length=NUM_ITERATIONS)
        norms = [optax.tree.norm(jax.grad(minimised)(at)) for at in (values, start)]
        return loss(values)[1], loss(start)[1], *norms

    judged, first, after_norm, before_norm = map(float, run(start))
    # The gradient of an absolute error does not vanish, but its loss does.
    has_converged = after_norm <= CONVERGED * before_norm or abs(judged) <= CONVERGED * abs(first)
    return judged if math.isfinite(judged) and has_converged else None
