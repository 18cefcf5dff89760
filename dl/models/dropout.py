"""Modules that drop parts of a network in training: units, channels, blocks or connections.

Shapes: B examples, C channels, D inputs, F features.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dl.ranges import BELOW_ONE, PROBABILITY, check


class Dropout(nn.Dropout):
    """Linen's dropout (Srivastava et al. 2014), which raises UserError if the rate is not in [0, 1]."""

    def __post_init__(self) -> None:
        check("dropout rate", self.rate, PROBABILITY)
        super().__post_init__()


class SpatialDropout(nn.Module):
    """Dropout of whole channels. Dropping single pixels has little effect, because neighbours are similar.

    The input has shape B × … × C. For each example every channel is kept with probability 1 − rate and then
    divided by 1 − rate. Without `train` it is the identity.

    Source: Tompson et al. 2015, section 3.2.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        spatial_axes = tuple(range(1, x.ndim - 1))
        return Dropout(self.rate, broadcast_dims=spatial_axes, deterministic=not train)(x)


class StochasticDepth(nn.Module):
    """Dropout of a whole residual branch: `x + StochasticDepth(0.1)(branch(x), train=train)`.

    For each example the branch is kept with probability 1 − rate and then divided by 1 − rate, so that
    evaluation needs no scaling. Keras and timm also call this "drop connect".

    Source: Huang et al. 2016, eq. 2.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        other_axes = tuple(range(1, x.ndim))
        return Dropout(self.rate, broadcast_dims=other_axes, deterministic=not train)(x)


class DropConnectDense(nn.Module):
    """A dense layer whose weights are dropped in training, instead of its units (Wan et al. 2013, section 3).

    The output is x (M ∘ W) / (1 − rate) + b. The mask M is Bernoulli and has the shape of the kernel. There
    is one mask per example, which the paper finds necessary (3.1). The masks take B·D·F numbers of memory. In
    evaluation no weight is dropped.

    Attributes:
      features: number of outputs, F.
      rate: probability that a weight is dropped.
      use_bias: whether the bias b is added. It is never dropped.
      dtype: dtype of the computation. `None` means that of inputs and parameters.
    """

    features: int
    rate: float
    use_bias: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(self, x_BD: jax.Array, *, train: bool) -> jax.Array:
        """Returns an array of shape B × F. The mask is drawn from the random stream `dropout`."""
        check("rate", self.rate, BELOW_ONE)
        shape = (x_BD.shape[-1], self.features)
        kernel_DF = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias_F = self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else None
        x_BD, kernel_DF = nn.dtypes.promote_dtype(x_BD, kernel_DF, dtype=self.dtype)
        if train and self.rate > 0:
            mask_BDF = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.rate, (x_BD.shape[0], *shape))
            kernel_BDF = jnp.where(mask_BDF, kernel_DF[None] / (1 - self.rate), 0)
            y_BF = jnp.einsum("bd,bdf->bf", x_BD, kernel_BDF)
        else:
            y_BF = x_BD @ kernel_DF
        return y_BF if bias_F is None else y_BF + bias_F.astype(y_BF.dtype)[None]
