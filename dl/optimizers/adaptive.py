"""Adaptive optimizers: the step of each parameter is scaled by statistics of its past gradients."""

import jax
import jax.numpy as jnp
import optax

from dl.optimizers.transforms import Rate, check_moments, decay_weights, recipe
from dl.ranges import BELOW_ONE, NON_NEGATIVE, POSITIVE, STEPS, Range, check, check_count


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
    check_moments(b1, b2, eps)
    return recipe(clip_norm, optax.scale_by_adam(b1, b2, eps), learning_rate=learning_rate)


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

    θ ← θ − α (m̂ / (√v̂ + ε) + λ θ), where λ = `weight_decay` for kernels and 0 for biases and the scales of
    norms. A kernel without a gradient is multiplied by 1 − α λ in each step.
    """
    check_moments(b1, b2, eps)
    return recipe(
        clip_norm,
        optax.scale_by_adam(b1, b2, eps),
        decay_weights(weight_decay),
        learning_rate=learning_rate,
    )


def adagrad(
    learning_rate: Rate,
    initial_accumulator: float = 0.0,
    *,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """Returns AdaGrad (Duchi et al. 2011, fig. 1, diagonal): s ← s + g², θ ← θ − α g / √s.

    An ε is not needed: a parameter with s = 0 has never had a gradient and does not change. A parameter with
    rare gradients keeps a large step, which suits sparse features.

    Args:
      initial_accumulator: initial value of s, at least 0. A positive value makes the first steps smaller.
    """
    check("initial_accumulator", initial_accumulator, NON_NEGATIVE)
    return recipe(
        clip_norm,
        optax.scale_by_rss(initial_accumulator, eps=0.0),
        decay_weights(weight_decay),
        learning_rate=learning_rate,
    )


def rmsprop(
    learning_rate: Rate,
    decay: float = 0.9,
    eps: float = 1e-8,
    momentum: float = 0.0,
    *,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """Returns RMSprop (Tieleman & Hinton 2012, lecture 6e): v ← ρ v + (1 − ρ) g², θ ← θ − α g / (√v + ε).

    ε is outside the root, as in PyTorch. There is no bias correction, so the first step has the length
    α / √(1 − ρ) in each parameter.

    Args:
      decay: ρ, in [0, 1).
      eps: ε, at least 0.
      momentum: momentum of the scaled gradients, in [0, 1). 0 means no momentum.
    """
    check("decay", decay, BELOW_ONE)
    check("eps", eps, NON_NEGATIVE)
    check("momentum", momentum, BELOW_ONE)
    return recipe(
        clip_norm,
        optax.scale_by_rms(decay, eps, eps_in_sqrt=False),
        optax.trace(momentum) if momentum else optax.identity(),
        decay_weights(weight_decay),
        learning_rate=learning_rate,
    )


def lion(
    learning_rate: Rate,
    b1: float = 0.9,
    b2: float = 0.99,
    *,
    weight_decay: float = 0.1,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """Returns Lion (Chen et al. 2023, algorithm 2): θ ← θ − α (sign(β₁ m + (1 − β₁) g) + λ θ).

    Then m ← β₂ m + (1 − β₂) g. Every entry changes by α. The learning rate should be 3 to 10 times lower than
    that of Adam, and the weight decay higher by the same factor (section 5).
    """
    check_moments(b1, b2, 0.0)
    return recipe(
        clip_norm,
        optax.scale_by_lion(b1, b2),
        decay_weights(weight_decay),
        learning_rate=learning_rate,
    )


def adafactor(
    learning_rate: Rate | None = None,
    *,
    decay_exponent: float = 0.8,
    clip_threshold: float = 1.0,
    min_factored_dim: int = 128,
    relative_step: bool = True,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """Returns Adafactor, which stores the second moments of a matrix as one row and one column.

    R ← β R + (1 − β) mean of (g² + 10⁻³⁰) over columns, C likewise over rows, β = 1 − t^−0.8;
    V = R Cᵀ / mean(R), u = g / √V, u ← u / max(1, RMS(u) / d), θ ← θ − α max(10⁻³, RMS(θ)) u.

    Source: Shazeer & Stern 2018, algorithm 4 with β₁ = 0.

    Args:
      learning_rate: α. `None` means min(10⁻², 1/√t), as in algorithm 6 of the paper. A given rate is not
        capped.
      decay_exponent: exponent of t in β, in (0, 1].
      clip_threshold: d, largest root mean square of u for each parameter.
      min_factored_dim: matrices with a smaller side store all second moments.
      relative_step: whether α is scaled by the root mean square of each parameter, by at least 10⁻³.
    """
    check("decay_exponent", decay_exponent, Range(0, 1, above_low=True))
    check("clip_threshold", clip_threshold, POSITIVE)
    min_factored_dim = check_count("min_factored_dim", min_factored_dim, STEPS)

    def decay_rate(count: jax.Array, exponent: float) -> jax.Array:
        return 1.0 - (count + 1.0) ** (-exponent)  # The function of optax is limited to float32.

    def capped(count: jax.Array | int) -> jax.Array:
        return jnp.minimum(1e-2, (count + 1.0) ** -0.5)

    return recipe(
        clip_norm,
        optax.scale_by_factored_rms(
            decay_rate=decay_exponent, min_dim_size_to_factor=min_factored_dim, decay_rate_fn=decay_rate
        ),
        optax.clip_by_block_rms(clip_threshold),
        optax.scale_by_param_block_rms() if relative_step else optax.identity(),
        decay_weights(weight_decay),
        learning_rate=capped if learning_rate is None else learning_rate,
    )
