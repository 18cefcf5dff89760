"""Optimizer recipes over optax, and learning-rate schedules.

A recipe is a function that returns a `GradientTransformation`; its state tells the current learning rate
under the name `learning_rate`. A schedule is a function from the step (0 at the first update) to the rate.
"""

from collections.abc import Callable, Sequence

import jax
import optax

from dl.types import Params

Schedule = Callable[[jax.Array | int], jax.Array | float]
Rate = float | Schedule


def sgd(
    learning_rate: Rate,
    momentum: float = 0.0,
    *,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """Returns stochastic gradient descent: v ← μ v + g, θ ← θ − α v (α (g + μ v) with Nesterov).

    Args:
      learning_rate: α.
      momentum: μ; 0 keeps no velocity.
      nesterov: look ahead along the velocity (Sutskever et al. 2013, as PyTorch states it).
      weight_decay: λ, added to the gradient of kernels as λ θ (L2, coupled).
      clip_norm: the global norm that a gradient is scaled down to before all else.
    """
    return _recipe(
        clip_norm,
        _decay(weight_decay),
        optax.trace(momentum, nesterov) if momentum else optax.identity(),
        learning_rate=learning_rate,
    )


def adam(
    learning_rate: Rate,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    *,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """Returns Adam with bias correction (Kingma & Ba 2015, algorithm 1).

    m ← β₁ m + (1 − β₁) g, v ← β₂ v + (1 − β₂) g², θ ← θ − α m̂ / (√v̂ + ε).
    """
    return _recipe(clip_norm, optax.scale_by_adam(b1, b2, eps), learning_rate=learning_rate)


def adamw(
    learning_rate: Rate,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    *,
    weight_decay: float = 1e-2,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """Returns Adam with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2).

    θ ← θ − α (m̂ / (√v̂ + ε) + λ θ), where λ = `weight_decay` on kernels and 0 on biases and the scales of
    norms: a parameter that gets no gradient shrinks by exactly (1 − α λ) a step.
    """
    return _recipe(
        clip_norm,
        optax.scale_by_adam(b1, b2, eps),
        _decay(weight_decay),
        learning_rate=learning_rate,
    )


def kernels(params: Params) -> Params:
    """Returns a tree of bools, True on what weight decay applies to: leaves with two dimensions or more.

    Biases and the scales of norms are vectors; to shrink them buys no regularisation.
    """
    return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)


def constant(learning_rate: float, *, warmup_steps: int = 0) -> Schedule:
    """Returns the rate, after a linear rise from 0 over `warmup_steps`."""
    return _warm(learning_rate, warmup_steps, optax.constant_schedule(learning_rate))


def linear(learning_rate: float, num_steps: int, *, warmup_steps: int = 0, end: float = 0.0) -> Schedule:
    """Returns a linear rise over `warmup_steps`, then a linear fall to `end` at `num_steps`."""
    fall = optax.linear_schedule(learning_rate, end, max(num_steps - warmup_steps, 1))
    return _warm(learning_rate, warmup_steps, fall)


def cosine(learning_rate: float, num_steps: int, *, warmup_steps: int = 0, end: float = 0.0) -> Schedule:
    """Returns a linear rise over `warmup_steps`, then half a cosine down to `end` at `num_steps`.

    Source: Loshchilov & Hutter 2017, eq. 5, without restarts.
    """
    alpha = end / learning_rate if learning_rate else 0.0
    fall = optax.cosine_decay_schedule(learning_rate, max(num_steps - warmup_steps, 1), alpha)
    return _warm(learning_rate, warmup_steps, fall)


def step(
    learning_rate: float,
    boundaries: Sequence[int],
    *,
    factor: float = 0.1,
    warmup_steps: int = 0,
) -> Schedule:
    """Returns the rate, multiplied by `factor` at each boundary (counted from the first step)."""
    scales = {boundary - warmup_steps: factor for boundary in boundaries}
    fall = optax.piecewise_constant_schedule(learning_rate, scales)
    return _warm(learning_rate, warmup_steps, fall)


def _warm(peak: float, warmup_steps: int, after: Schedule) -> Schedule:
    if not warmup_steps:
        return after
    # Starts above 0, so that the first step already moves: peak / warmup_steps, 2 peak / warmup_steps, …
    rise = optax.linear_schedule(peak / warmup_steps, peak, max(warmup_steps - 1, 1))
    return optax.join_schedules([rise, after], [warmup_steps])


def _decay(weight_decay: float) -> optax.GradientTransformation:
    return optax.add_decayed_weights(weight_decay, kernels) if weight_decay else optax.identity()


def _recipe(
    clip_norm: float | None, *parts: optax.GradientTransformation, learning_rate: Rate
) -> optax.GradientTransformation:
    """Chains clipping, the parts and the final −α; α stands in the state, where the log finds it."""
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    descend = optax.inject_hyperparams(optax.scale_by_learning_rate)(learning_rate)
    return optax.chain(clip, *parts, descend)
