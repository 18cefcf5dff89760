"""The multilayer perceptron.

Shapes: B batch, D input features, C classes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class MLP(nn.Module):
    """Dense layers with an activation between them (Rumelhart, Hinton & Williams 1986).

    Attributes:
      hidden: the width of each hidden layer.
      num_classes: C.
      activation: after each hidden layer.
      dropout: the probability that a hidden unit is dropped in training.
      kernel_init: of every kernel; He et al. 2015 suits ReLU.
      dtype: of the computation; parameters stay float32.
    """

    hidden: Sequence[int]
    num_classes: int
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    dropout: float = 0.0
    kernel_init: nn.initializers.Initializer = nn.initializers.he_normal()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits of shape (B, C); `x` is (B, ...), flattened to (B, D)."""
        x_BD = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            x_BD = nn.Dense(width, dtype=self.dtype, kernel_init=self.kernel_init)(x_BD)
            x_BD = self.activation(x_BD)
            x_BD = nn.Dropout(self.dropout, deterministic=not train)(x_BD)
        return nn.Dense(self.num_classes, dtype=self.dtype, kernel_init=self.kernel_init)(x_BD)
