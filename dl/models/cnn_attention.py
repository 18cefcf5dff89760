"""A hybrid of a convolutional network and attention: attention relates the positions of a feature map.

Shapes: B batch, H height, W width, C channels, T = H · W positions, D model dim, N classes.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax

from dl.models.blocks.attention import Attention
from dl.models.cnn import max_pool
from dl.models.dropout import Dropout
from dl.models.layers import global_mean_pool


class FeatureMap(nn.Module):
    """Convolutions of 3×3 with ReLU, each followed by a max-pool of 2×2: the backbone of both networks.

    With two convolutions an output sees 10×10 pixels, and with three 22×22.

    Attributes:
      channels: number of channels of each convolution.
      dtype: dtype of the computation; parameters stay float32. `None` means that of inputs and parameters.
    """

    channels: Sequence[int] = (16, 32)
    dtype: Any = None

    @nn.compact
    def __call__(self, image_BHWC: jax.Array, train: bool = False) -> jax.Array:
        """Returns a feature map of shape B × H / 2^k × W / 2^k × C for k convolutions."""
        x_BHWC = image_BHWC
        for channels in self.channels:
            x_BHWC = max_pool(nn.relu(nn.Conv(channels, (3, 3), dtype=self.dtype)(x_BHWC)))
        return x_BHWC


class PooledCNN(nn.Module):
    """A backbone, the mean over all positions, and dense layers: a CNN that forgets where it saw what.

    Its parameters are `backbone`, `hidden` and `head`.

    Source: Lin et al. 2014, section 3.2.

    Attributes:
      num_classes: number of classes, N.
      backbone: module from an image to a feature map, B × H × W × C.
      hidden: width of the dense layer before the last one.
      dropout: probability that a unit of that layer is dropped in training.
      dtype: dtype of the head; parameters stay float32. `None` means that of inputs and parameters.
    """

    num_classes: int
    backbone: nn.Module = FeatureMap()
    hidden: int = 64
    dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, image_BHWC: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits of shape (B, N)."""
        pooled_BD = global_mean_pool(self.features(self.backbone(image_BHWC, train), train))
        hidden_BD = nn.relu(nn.Dense(self.hidden, dtype=self.dtype, name="hidden")(pooled_BD))
        hidden_BD = Dropout(self.dropout, deterministic=not train)(hidden_BD)
        return nn.Dense(self.num_classes, dtype=self.dtype, name="head")(hidden_BD)

    def features(self, x_BHWC: jax.Array, train: bool) -> jax.Array:
        """Returns the feature map whose mean is classified."""
        return x_BHWC


class CNNAttention(PooledCNN):
    """`PooledCNN` with multi-head attention between the positions of the feature map before the mean.

    A learned embedding is added at each position, so that the attention knows where it looks. The parameters
    fit only one image size. In addition to those of `PooledCNN` they are `positions`, `project`, `norm` and
    `attention`. The attention weights can be read; see `blocks.attention.Attention`.

    Source: the feature map as a sequence with positions is that of Carion et al. 2020, section 3.2.

    Attributes:
      num_heads: number of heads; it must divide D.
      dim: model dim, D.
      pool: side of the squares of the feature map that are averaged before the attention. The time of the
        attention grows with the square of the number of positions.
    """

    num_heads: int = 4
    dim: int = 64
    pool: int = 2

    def features(self, x_BHWC: jax.Array, train: bool) -> jax.Array:
        """Returns the sum of the feature map, projected to D channels, and the attention over it."""
        pool = (self.pool, self.pool)
        x_BHWC = nn.avg_pool(x_BHWC, pool, strides=pool)
        batch, height, width, _ = x_BHWC.shape
        project = nn.Dense(self.dim, dtype=self.dtype, name="project")
        x_BTD = project(x_BHWC.reshape(batch, height * width, -1))
        shape = (1, height * width, self.dim)
        position_1TD = self.param("positions", nn.initializers.normal(0.1), shape)
        x_BTD += position_1TD.astype(x_BTD.dtype)
        y_BTD = nn.LayerNorm(dtype=self.dtype, name="norm")(x_BTD)
        attention = Attention(self.num_heads, dropout=self.dropout, dtype=self.dtype, name="attention")
        y_BTD, _ = attention(y_BTD, train=train)
        return (x_BTD + y_BTD).reshape(batch, height, width, self.dim)
