"""Rematerialisation: activations that are computed again in the backward pass in place of being kept.

Source: Chen et al. 2016, "Training deep nets with sublinear memory cost"; `jax.checkpoint`.
"""

from typing import Any

import flax.linen as nn
import jax

from dl.types import Remat


def rematerialized(layer_type: Any, remat: Remat, **options: Any) -> Any:
    """Returns a class of modules that computes a part of its activations again in the backward pass.

    The values and the gradients do not change.

    Args:
      layer_type: class of the modules.
      remat: what is computed again. `none`: nothing. `layers`: all but the inputs of the module, which saves
        most memory and costs about a third more time. `dots`: all but the results of dense layers, so that
        attention weights, norms and activation functions are computed again, which costs little time.
      options: further arguments of `nn.remat`.
    """
    if remat == "none":
        return layer_type
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    return nn.remat(layer_type, policy=policy, **options)
