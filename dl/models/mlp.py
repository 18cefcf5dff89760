"""The multilayer perceptron, plain and with residual blocks.

Shapes: B batch, D features, H hidden units of a branch, C classes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax

from dl.models.dropout import DropConnectDense, Dropout, StochasticDepth


class MLP(nn.Module):
    """Dense layers with an activation between them (Rumelhart, Hinton & Williams 1986).

    Attributes:
      hidden: width of each hidden layer.
      num_classes: number of classes, C.
      activation: function that is applied after each hidden layer.
      dropout: probability that a hidden unit is dropped in training.
      kernel_init: initializer of every kernel. The default suits ReLU (He et al. 2015).
      dtype: dtype of the computation; parameters stay float32. `None` means that of inputs and parameters.
    """

    hidden: Sequence[int]
    num_classes: int
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    dropout: float = 0.0
    kernel_init: nn.initializers.Initializer = nn.initializers.he_normal()
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits of shape (B, C). `x` has shape (B, ...) and is flattened to (B, D)."""
        x_BD = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            x_BD = nn.Dense(width, dtype=self.dtype, kernel_init=self.kernel_init)(x_BD)
            x_BD = self.activation(x_BD)
            x_BD = Dropout(self.dropout, deterministic=not train)(x_BD)
        return nn.Dense(self.num_classes, dtype=self.dtype, kernel_init=self.kernel_init)(x_BD)


class ResidualMLP(nn.Module):
    """Residual blocks of dense layers, x ← x + W₂ relu(W₁ norm(x)), with a norm before the last layer.

    The blocks are those of a pre-activation network (He et al. 2016b, fig. 1b) with layer normalisation.

    Attributes:
      width: width of the residual stream, D.
      hidden: width of the hidden layer of each branch, H.
      num_blocks: number of residual blocks.
      num_classes: number of classes, C.
      dropout: probability that a hidden unit is dropped in training.
      drop_connect: probability that one of the weights W₁ is dropped in training.
      stochastic_depth: probability that the last branch is dropped in training. The probability of the other
        branches grows linearly with their index (Huang et al. 2016, eq. 4).
      dtype: dtype of the computation; parameters stay float32. `None` means that of inputs and parameters.
    """

    width: int
    hidden: int
    num_blocks: int
    num_classes: int
    dropout: float = 0.0
    drop_connect: float = 0.0
    stochastic_depth: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits of shape (B, C). `x` has shape (B, ...) and is flattened."""
        x_BD = nn.Dense(self.width, dtype=self.dtype)(x.reshape(x.shape[0], -1))
        for number in range(1, self.num_blocks + 1):
            branch_BD = nn.LayerNorm(dtype=self.dtype)(x_BD)
            branch_BH = DropConnectDense(self.hidden, self.drop_connect, dtype=self.dtype)(
                branch_BD, train=train
            )
            branch_BH = Dropout(self.dropout, deterministic=not train)(nn.relu(branch_BH))
            branch_BD = nn.Dense(self.width, dtype=self.dtype)(branch_BH)
            rate = self.stochastic_depth * number / self.num_blocks
            x_BD = x_BD + StochasticDepth(rate)(branch_BD, train=train)
        x_BD = nn.LayerNorm(dtype=self.dtype)(x_BD)
        return nn.Dense(self.num_classes, dtype=self.dtype)(x_BD)
