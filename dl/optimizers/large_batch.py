"""Optimizers for large batches: a step as long as its layer is large."""

import optax

from dl.optimizers.transforms import Rate, check_moments, decay_weights, recipe
from dl.penalties import kernels
from dl.ranges import BELOW_ONE, POSITIVE, check


def lamb(
    learning_rate: Rate,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    *,
    weight_decay: float = 1e-2,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """Returns LAMB, Adam whose step is in proportion to each kernel's norm (You et al. 2020, algorithm 2).

    u = m̂ / (√v̂ + ε) + λ θ, θ ← θ − α u ‖θ‖ / ‖u‖, norms per parameter. Biases and norms, which the paper's
    code exempts too, and parameters that are 0 take the step α u.
    """
    check_moments(b1, b2, eps)
    return recipe(
        clip_norm,
        optax.scale_by_adam(b1, b2, eps),
        decay_weights(weight_decay),
        optax.masked(optax.scale_by_trust_ratio(), kernels),
        learning_rate=learning_rate,
    )


def lars(
    learning_rate: Rate,
    momentum: float = 0.9,
    *,
    trust_coefficient: float = 1e-3,
    weight_decay: float = 1e-4,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """Returns LARS, momentum with a rate per kernel (You et al. 2017, algorithm 1).

    u = g + λ θ, v ← μ v + α η u ‖θ‖ / ‖u‖, θ ← θ − v. The paper divides by ‖g‖ + λ ‖θ‖, which bounds ‖u‖ from
    above; its successors divide by ‖u‖ itself, as here. λ is coupled.
    Biases and norms take plain momentum, undecayed.

    Args:
      learning_rate: α; inside the velocity, so that a change of rate acts on new gradients alone.
      momentum: μ.
      trust_coefficient: η.
    """
    check("momentum", momentum, BELOW_ONE)
    check("trust_coefficient", trust_coefficient, POSITIVE)
    descend = recipe(
        clip_norm,
        decay_weights(weight_decay),
        optax.masked(optax.scale_by_trust_ratio(trust_coefficient=trust_coefficient), kernels),
        learning_rate=learning_rate,
    )
    return optax.chain(descend, optax.trace(momentum))
