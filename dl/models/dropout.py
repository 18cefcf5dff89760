"""Modules that drop parts of a network while it is trained: units, channels, whole blocks, connections.

Shapes: B examples, C channels, D inputs, F features.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dl.ranges import BELOW_ONE, PROBABILITY, check


class Dropout(nn.Dropout):
    """Linen's dropout (Srivastava et al. 2014), which refuses a rate that is no probability."""

    def __post_init__(self) -> None:
        check("dropout rate", self.rate, PROBABILITY)
        super().__post_init__()


class SpatialDropout(nn.Module):
    """Dropout of whole channels: neighbouring pixels agree, so to drop single ones drops little.

    Tompson et al. 2015, 3.2. Input B × … × C; every example draws its own channels, which are kept with
    probability 1 − rate and then divided by it. The identity unless `train`.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        places = tuple(range(1, x.ndim - 1))
        return Dropout(self.rate, broadcast_dims=places, deterministic=not train)(x)


class StochasticDepth(nn.Module):
    """Drops a residual branch whole: `x + StochasticDepth(0.1)(branch(x), train=train)`.

    Huang et al. 2016, eq. 2. Every example draws for itself; a branch that is kept is divided by 1 − rate, so
    that evaluation needs no scaling. Keras and timm call this "drop connect" too.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        rest = tuple(range(1, x.ndim))
        return Dropout(self.rate, broadcast_dims=rest, deterministic=not train)(x)


class DropConnectDense(nn.Module):
    """A dense layer whose single weights, not units, are dropped in training (Wan et al. 2013, 3).

    The output is x (M ∘ W) / (1 − rate) + b. The mask M is Bernoulli, of the kernel's shape, and one per
    example, which the paper finds necessary (3.1); it takes B·D·F numbers. Evaluation uses the mean weights
    W: no connection is dropped.

    Attributes:
      features: F.
      rate: the probability that a weight is dropped.
      use_bias: whether b is added; it is never dropped.
      dtype: of the computation. None: of inputs and parameters.
    """

    features: int
    rate: float
    use_bias: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(self, x_BD: jax.Array, *, train: bool) -> jax.Array:
        """Returns an array of shape B × F; the mask comes from the stream `dropout`."""
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
