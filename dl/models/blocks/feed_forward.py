"""The feed-forward network of a Transformer layer.

Shapes: B batch, T tokens, D model dim, F hidden dim.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from dl.models.dropout import Dropout

Initializer = nn.initializers.Initializer


class FeedForward(nn.Module):
    """Two dense layers with an activation, applied to each token (Vaswani et al. 2017, eq. 2).

    With a gate the hidden layer is activation(x W_gate) ∘ (x W_in); SwiGLU is a gate with `nn.silu` (Shazeer
    2020, eq. 6). The layers are `gate`, `in` and `out`.

    Attributes:
      hidden_dim: F.
      activation: function of the hidden layer.
      is_gated: whether the hidden layer has a gate.
      use_bias: whether the dense layers have biases.
      dropout: probability that a hidden value is dropped in training.
      kernel_init: initializer of `gate` and `in`.
      out_init: initializer of `out`. `None` means `kernel_init`.
      dtype: dtype of the computation; parameters stay float32. `None` means that of inputs and parameters.
    """

    hidden_dim: int
    activation: Callable[[jax.Array], jax.Array] = nn.gelu
    is_gated: bool = False
    use_bias: bool = True
    dropout: float = 0.0
    kernel_init: Initializer = nn.initializers.xavier_uniform()
    out_init: Initializer | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x_BTD: jax.Array, train: bool = False) -> jax.Array:
        def dense(dim: int, init: Initializer, name: str) -> nn.Dense:
            return nn.Dense(dim, use_bias=self.use_bias, kernel_init=init, dtype=self.dtype, name=name)

        hidden_BTF = dense(self.hidden_dim, self.kernel_init, "in")(x_BTD)
        if self.is_gated:
            gate_BTF = dense(self.hidden_dim, self.kernel_init, "gate")(x_BTD)
            hidden_BTF = self.activation(gate_BTF) * hidden_BTF
        else:
            hidden_BTF = self.activation(hidden_BTF)
        hidden_BTF = Dropout(self.dropout, deterministic=not train)(hidden_BTF)
        return dense(x_BTD.shape[-1], self.out_init or self.kernel_init, "out")(hidden_BTF)
