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
      learning_rate: learning rate α.
      momentum: momentum μ, in [0, 1). 0 means no velocity.
      nesterov: whether to use Nesterov momentum (Sutskever et al. 2013), in the form of PyTorch.
      weight_decay: weight decay λ. It is coupled: λ θ is added to the gradient of kernels (L2).
      clip_norm: largest global norm of the gradient. A longer gradient is scaled down to it first.
    """
    check("momentum", momentum, BELOW_ONE)
    return recipe(
        clip_norm,
        decay_weights(weight_decay),
        optax.trace(momentum, nesterov) if momentum else optax.identity(),
        learning_rate=learning_rate,
    )
