"""AlexNet, the convolutional network that won the ImageNet challenge of 2012.

Shapes: B batch, H height, W width, C channels, D features, N classes.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax

from dl.models.layers import global_mean_pool, require_pixels
from dl.models.mlp import MLP
from dl.models.scaling import Scaling, imagenet_statistics


class AlexNet(nn.Module):
    """Five convolutions, three overlapping max-pools, three dense layers (Krizhevsky et al. 2012, 3.5).

    This is the version with one column (Krizhevsky 2014, "One weird trick"), as in torchvision. It is not
    split over two GPUs and has no local response normalisation. The head reads the flattened feature map, 6×6
    for images of 224×224. The smallest image is 63×63.

    Attributes:
      num_classes: number of classes, N. `None` means a network without a head, which returns features of
        shape (B, C).
      channels: number of channels of each of the five convolutions.
      hidden: width of each dense layer before the last one.
      dropout: probability that a unit of these is dropped in training (4.2).
      scaling: function from pixels in [0, 1] to the input range of the network.
      dtype: dtype of the computation; parameters stay float32. `None` means that of inputs and parameters.
    """

    num_classes: int | None
    channels: Sequence[int] = (64, 192, 384, 256, 256)
    hidden: Sequence[int] = (4096, 4096)
    dropout: float = 0.5
    scaling: Scaling = imagenet_statistics
    dtype: Any = None

    @nn.compact
    def __call__(self, image_BHWC: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits of shape (B, N), or features of shape (B, C) without a head."""
        x_BHWC = self.scaling(image_BHWC)
        shapes = ((11, 4, 2), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1))
        for index, (channels, (side, strides, padding)) in enumerate(zip(self.channels, shapes, strict=True)):
            x_BHWC = nn.Conv(
                channels,
                (side, side),
                strides=strides,
                padding=padding,
                kernel_init=nn.initializers.he_normal(),
                dtype=self.dtype,
                name=f"conv{index}",
            )(x_BHWC)
            x_BHWC = nn.relu(x_BHWC)
            if index in (0, 1, 4):
                x_BHWC = nn.max_pool(x_BHWC, (3, 3), strides=(2, 2))
        if self.num_classes is None:
            return global_mean_pool(x_BHWC)
        require_pixels(x_BHWC)
        head = MLP(self.hidden, self.num_classes, dropout=self.dropout, dtype=self.dtype, name="head")
        return head(x_BHWC, train)


def alexnet(num_classes: int | None = 1000, **options: Any) -> AlexNet:
    """Returns AlexNet: 61,100,840 parameters for images of 224×224 and 1000 classes."""
    return AlexNet(num_classes, **options)
