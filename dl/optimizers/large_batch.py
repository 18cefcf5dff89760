"""Optimizers for large batches: the step of a layer is in proportion to the norm of its parameters."""

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
    """Returns LAMB: Adam with a step in proportion to the norm of each kernel (You et al. 2020, algorithm 2).

    u = m̂ / (√v̂ + ε) + λ θ, θ ← θ − α u ‖θ‖ / ‖u‖, with one norm per kernel. Biases and the parameters of
    norms take the step α u, as in the paper's code. So does a kernel that is 0.
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
    """Returns LARS: momentum with one learning rate per kernel (You et al. 2017, algorithm 1).

    u = g + λ θ, v ← μ v + α η u ‖θ‖ / ‖u‖, θ ← θ − v. The paper divides by ‖g‖ + λ ‖θ‖, an upper bound of
    ‖u‖. Later versions divide by ‖u‖, as this one does. The weight decay λ is coupled. Biases and the
    parameters of norms use momentum without decay.

    Args:
      learning_rate: α. It is a factor inside the velocity, so a change of the rate affects only new
        gradients.
      momentum: μ, in [0, 1).
      trust_coefficient: η, above 0.
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
