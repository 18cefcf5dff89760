"""The parts that all optimizers share: clipping, weight decay, and a learning rate that the state holds.

θ are the parameters, α the rate, λ the weight decay.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from dl.penalties import kernels
from dl.ranges import BELOW_ONE, NON_NEGATIVE, POSITIVE, check
from dl.schedules import Plateau, Schedule
from dl.types import Params

Rate = float | Schedule | Plateau


def decay_weights(weight_decay: float) -> optax.GradientTransformation:
    """Returns the transformation that adds λ θ to the update of kernels; the identity if λ = 0."""
    check("weight_decay", weight_decay, NON_NEGATIVE)
    return optax.add_decayed_weights(weight_decay, kernels) if weight_decay else optax.identity()


def recipe(
    clip_norm: float | None, *parts: optax.GradientTransformation, learning_rate: Rate
) -> optax.GradientTransformation:
    """Returns the chain of clipping, the parts and the factor −α. The state holds α, for the log.

    Raises:
      UserError: the norm or the rate is out of range.
    """
    if not callable(learning_rate):
        check("learning_rate", learning_rate, NON_NEGATIVE)
    if clip_norm is not None:
        check("clip_norm", clip_norm, POSITIVE)
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    return optax.chain(clip, *parts, descend_by(learning_rate))


def check_moments(b1: float, b2: float, eps: float) -> None:
    """Raises UserError unless the decay rates of Adam's moments are in [0, 1) and ε is not negative."""
    check("b1", b1, BELOW_ONE)
    check("b2", b2, BELOW_ONE)
    check("eps", eps, NON_NEGATIVE)


def descend_by(learning_rate: Rate) -> optax.GradientTransformationExtraArgs:
    """Returns the factor −α. α follows its schedule unless `update` gets an argument `learning_rate`."""
    descend = optax.inject_hyperparams(optax.scale_by_learning_rate)(learning_rate)

    def update(
        updates: Params,
        state: optax.OptState,
        params: Params | None = None,
        *,
        learning_rate: jax.Array | None = None,
        **extra: Any,
    ) -> tuple[Params, optax.OptState]:
        scheduled, state = descend.update(updates, state, params, **extra)
        if learning_rate is None:
            return scheduled, state
        rate = jnp.asarray(learning_rate)
        dtype = state.hyperparams["learning_rate"].dtype
        state = state._replace(hyperparams={**state.hyperparams, "learning_rate": rate.astype(dtype)})
        return jax.tree.map(lambda leaf: -rate.astype(leaf.dtype) * leaf, updates), state

    return optax.GradientTransformationExtraArgs(descend.init, update)


def with_rate(tx: optax.GradientTransformation, schedule: Schedule) -> optax.GradientTransformation:
    """Returns an optimizer of `dl.optimizers` with another schedule.

    The average of `schedule_free_adamw` is still weighted by the old schedule. An optimizer that is not from
    `dl.optimizers` keeps its rate. The metric `learning_rate` of a step shows which rate is used.
    """
    tx = optax.with_extra_args_support(tx)

    def init(params: Params) -> tuple[jax.Array, optax.OptState]:
        return jnp.zeros((), jnp.int32), tx.init(params)

    def update(
        updates: Params,
        state: tuple[jax.Array, optax.OptState],
        params: Params | None = None,
        **extra: Any,
    ) -> tuple[Params, tuple[jax.Array, optax.OptState]]:
        count, inner = state
        rate = jnp.asarray(schedule(count), jnp.float32)
        updates, inner = tx.update(updates, inner, params, **{**extra, "learning_rate": rate})
        return updates, (count + 1, inner)

    return optax.GradientTransformationExtraArgs(init, update)
