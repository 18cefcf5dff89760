"""Stochastic gradient descent, with momentum."""

import optax

from dl.optimizers.transforms import Rate, decay_weights, recipe
from dl.ranges import BELOW_ONE, check


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
    check("momentum", momentum, BELOW_ONE)
    return recipe(
        clip_norm,
        decay_weights(weight_decay),
        optax.trace(momentum, nesterov) if momentum else optax.identity(),
        learning_rate=learning_rate,
    )
