"""VGG: deep networks of 3×3 convolutions.

Shapes: B batch, H height, W width, C channels, N classes.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax

from dl.models.cnn import max_pool
from dl.models.layers import global_mean_pool, require_pixels
from dl.models.mlp import MLP
from dl.models.scaling import Scaling, imagenet_statistics


class VGG(nn.Module):
    """Stages of 3×3 convolutions and a 2×2 max-pool (Simonyan & Zisserman 2015, section 2, table 1).

    The head reads the flattened feature map, 7×7 for images of 224×224. The smallest image is 32×32.

    Attributes:
      num_classes: number of classes, N. `None` means a network without a head, which returns features of
        shape (B, C).
      num_convs: number of convolutions of each stage.
      channels: number of channels of each stage.
      hidden: width of each dense layer before the last one.
      dropout: probability that a unit of these is dropped in training (3.1).
      scaling: function from pixels in [0, 1] to the input range of the network.
      dtype: dtype of the computation; parameters stay float32. `None` means that of inputs and parameters.
    """

    num_classes: int | None
    num_convs: Sequence[int] = (2, 2, 3, 3, 3)
    channels: Sequence[int] = (64, 128, 256, 512, 512)
    hidden: Sequence[int] = (4096, 4096)
    dropout: float = 0.5
    scaling: Scaling = imagenet_statistics
    dtype: Any = None

    @nn.compact
    def __call__(self, image_BHWC: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits of shape (B, N), or features of shape (B, C) without a head."""
        x_BHWC = self.scaling(image_BHWC)
        for stage, (num_convs, channels) in enumerate(zip(self.num_convs, self.channels, strict=True)):
            for index in range(num_convs):
                x_BHWC = nn.Conv(
                    channels,
                    (3, 3),
                    kernel_init=nn.initializers.he_normal(),
                    dtype=self.dtype,
                    name=f"stage{stage}_conv{index}",
                )(x_BHWC)
                x_BHWC = nn.relu(x_BHWC)
            require_pixels(x_BHWC)
            x_BHWC = max_pool(x_BHWC)
        if self.num_classes is None:
            return global_mean_pool(x_BHWC)
        require_pixels(x_BHWC)
        head = MLP(self.hidden, self.num_classes, dropout=self.dropout, dtype=self.dtype, name="head")
        return head(x_BHWC, train)


def vgg11(num_classes: int | None = 1000, **options: Any) -> VGG:
    """Returns configuration A: 132,863,336 parameters for images of 224×224 and 1000 classes."""
    return VGG(num_classes, num_convs=(1, 1, 2, 2, 2), **options)


def vgg13(num_classes: int | None = 1000, **options: Any) -> VGG:
    """Returns configuration B: 133,047,848 parameters for images of 224×224 and 1000 classes."""
    return VGG(num_classes, num_convs=(2, 2, 2, 2, 2), **options)


def vgg16(num_classes: int | None = 1000, **options: Any) -> VGG:
    """Returns configuration D: 138,357,544 parameters for images of 224×224 and 1000 classes."""
    return VGG(num_classes, num_convs=(2, 2, 3, 3, 3), **options)


def vgg19(num_classes: int | None = 1000, **options: Any) -> VGG:
    """Returns configuration E: 143,667,240 parameters for images of 224×224 and 1000 classes."""
    return VGG(num_classes, num_convs=(2, 2, 4, 4, 4), **options)
