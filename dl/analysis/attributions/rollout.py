"""Attention rollout: attention followed through all layers (Abnar & Zuidema 2020).

Shapes: B batch, H heads, T tokens.
"""

import re
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from dl.errors import UserError
from dl.types import Variables


def attention_rollout(weights: Sequence[Any]) -> np.ndarray:
    """Returns how much each token of the last layer attends to each token of the input (section 3).

    The attention of a layer is the mean over its heads. Half of each token comes from its residual
    connection.

    Args:
      weights: attention weights of each layer, the first layer first, each of shape (B, H, T, T) with rows
        that sum to one.

    Returns:
      Shape (B, T, T). Its rows sum to one. Row 0 explains the class token of a vision transformer.

    Raises:
      UserError: there are no weights, or their shapes differ.
    """
    shapes = {np.shape(one) for one in weights}
    if len(shapes) != 1 or any(len(shape) != 4 or shape[2] != shape[3] for shape in shapes):
        raise UserError(
            f"weights has the shapes {sorted(shapes)}; every layer must have the same (B, H, T, T)"
        )
    rolled_BTT: Any = None
    for weights_BHTT in weights:
        heads_BTT = jnp.asarray(weights_BHTT, jnp.float32).mean(1)
        layer_BTT = 0.5 * heads_BTT + 0.5 * jnp.eye(heads_BTT.shape[-1])[None]
        rolled_BTT = layer_BTT if rolled_BTT is None else layer_BTT @ rolled_BTT
    return np.asarray(rolled_BTT)


def attention_weights(
    model: nn.Module, variables: Variables, *inputs: Any, **options: Any
) -> list[np.ndarray]:
    """Returns the attention weights of each layer of a model, the first layer first.

    Args:
      model: a Linen model whose attention is `dl.models.blocks.attention.Attention`.
      variables: its variables.
      inputs: what the model is applied to, such as images or tokens of B examples.
      options: more arguments of the model.

    Returns:
      Weights of shape (B, H, T, S) for each layer.

    Raises:
      UserError: the model has no attention.
    """

    def sown(variables: Variables, *inputs: Any) -> Any:
        return model.apply(variables, *inputs, mutable=["intermediates"], **options)[1].get(
            "intermediates", {}
        )

    found = flatten_dict(jax.jit(sown)(variables, *inputs))
    layers = sorted((path for path in found if path[-1] == "weights"), key=_natural)
    if not layers:
        raise UserError(f"{type(model).__name__} has no attention weights; choose a transformer")
    weights: list[np.ndarray] = []
    for path in layers:
        for array in map(np.asarray, found[path]):
            # Layers that are scanned have one array with an axis of layers in front.
            weights.extend(array if array.ndim == 5 else [array])
    return weights


def _natural(path: tuple[str, ...]) -> list[Any]:
    """Returns a key that sorts block10 behind block9."""
    parts = re.split(r"(\d+)", "/".join(path))
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]
