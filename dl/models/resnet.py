"""Residual networks, version 1.5: the stride of a bottleneck is in its 3×3 convolution.

Shapes: B batch, H height, W width, C channels, N classes.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax

from dl.models.layers import ConvNorm, global_mean_pool
from dl.models.scaling import Scaling, imagenet_statistics


class ResidualBlock(nn.Module):
    """relu(F(x) + shortcut(x)) (He et al. 2016, eq. 1 and 2, fig. 5).

    F is two 3×3 convolutions, or in a bottleneck a 1×1, a 3×3 and a 1×1 convolution. The shortcut is the
    identity. Where the shape changes it is a 1×1 convolution (section 4.1, option B).

    Attributes:
      channels: number of output channels.
      strides: stride of the first 3×3 convolution.
      bottleneck: whether F is a bottleneck, with a quarter of the channels inside.
      zero_init: whether the initial scale of the last normalisation is 0, so that the block initially equals
        its shortcut (Goyal et al. 2017, section 5.1).
      momentum: decay of the running statistics in each training step.
      dtype: dtype of the computation; parameters stay float32. `None` means that of inputs and parameters.
    """

    channels: int
    strides: int = 1
    bottleneck: bool = False
    zero_init: bool = False
    momentum: float = 0.9
    dtype: Any = None

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, train: bool = False) -> jax.Array:
        conv = functools.partial(ConvNorm, momentum=self.momentum, dtype=self.dtype)
        last = functools.partial(
            conv,
            self.channels,
            activation=None,
            scale_init=nn.initializers.zeros if self.zero_init else nn.initializers.ones,
        )
        if self.bottleneck:
            inner = self.channels // 4
            layers = [
                conv(inner, (1, 1), name="conv0"),
                conv(inner, strides=self.strides, padding=1, name="conv1"),
                last((1, 1), name="conv2"),
            ]
        else:
            layers = [
                conv(self.channels, strides=self.strides, padding=1, name="conv0"),
                last(padding=1, name="conv1"),
            ]
        residual_BHWC = x_BHWC
        for layer in layers:
            residual_BHWC = layer(residual_BHWC, train)
        if self.strides != 1 or x_BHWC.shape[-1] != self.channels:
            shortcut = conv(self.channels, (1, 1), self.strides, activation=None, name="shortcut")
            x_BHWC = shortcut(x_BHWC, train)
        return nn.relu(x_BHWC + residual_BHWC)


class ResNet(nn.Module):
    """Four stages of residual blocks. Each stage halves the image (He et al. 2016, table 1).

    Attributes:
      num_classes: number of classes, N. `None` means a network without a head, which returns features of
        shape (B, C).
      num_blocks: number of blocks of each stage.
      bottleneck: whether the blocks are bottlenecks, with four times as many output channels.
      width: number of channels of the stem. Each stage doubles it.
      small_images: whether the stem is one 3×3 convolution of stride 1 without pooling, for images of 32×32
        (section 4.2). Otherwise it is a 7×7 convolution of stride 2 and a 3×3 max-pool.
      zero_init: whether each block initially equals its shortcut (Goyal et al. 2017, section 5.1).
      momentum: decay of the running statistics in each training step.
      scaling: function from pixels in [0, 1] to the input range of the network.
      dtype: dtype of the computation; parameters stay float32. `None` means that of inputs and parameters.
    """

    num_classes: int | None
    num_blocks: Sequence[int] = (2, 2, 2, 2)
    bottleneck: bool = False
    width: int = 64
    small_images: bool = False
    zero_init: bool = False
    momentum: float = 0.9
    scaling: Scaling = imagenet_statistics
    dtype: Any = None

    @nn.compact
    def __call__(self, image_BHWC: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits of shape (B, N), or features of shape (B, C) without a head."""
        stem = functools.partial(ConvNorm, self.width, momentum=self.momentum, dtype=self.dtype, name="stem")
        x_BHWC = self.scaling(image_BHWC)
        if self.small_images:
            x_BHWC = stem((3, 3))(x_BHWC, train)
        else:
            x_BHWC = stem((7, 7), strides=2, padding=3)(x_BHWC, train)
            x_BHWC = nn.max_pool(x_BHWC, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage, num_blocks in enumerate(self.num_blocks):
            for index in range(num_blocks):
                block = ResidualBlock(
                    self.width * 2**stage * (4 if self.bottleneck else 1),
                    strides=2 if stage > 0 and index == 0 else 1,
                    bottleneck=self.bottleneck,
                    zero_init=self.zero_init,
                    momentum=self.momentum,
                    dtype=self.dtype,
                    name=f"stage{stage}_block{index}",
                )
                x_BHWC = block(x_BHWC, train)
        features_BC = global_mean_pool(x_BHWC)
        if self.num_classes is None:
            return features_BC
        return nn.Dense(self.num_classes, dtype=self.dtype, name="head")(features_BC)


def resnet18(num_classes: int | None = 1000, **options: Any) -> ResNet:
    """Returns ResNet-18: 11,689,512 parameters for 1000 classes."""
    return ResNet(num_classes, (2, 2, 2, 2), **options)


def resnet34(num_classes: int | None = 1000, **options: Any) -> ResNet:
    """Returns ResNet-34: 21,797,672 parameters for 1000 classes."""
    return ResNet(num_classes, (3, 4, 6, 3), **options)


def resnet50(num_classes: int | None = 1000, **options: Any) -> ResNet:
    """Returns ResNet-50: 25,557,032 parameters for 1000 classes."""
    return ResNet(num_classes, (3, 4, 6, 3), bottleneck=True, **options)


def resnet101(num_classes: int | None = 1000, **options: Any) -> ResNet:
    """Returns ResNet-101: 44,549,160 parameters for 1000 classes."""
    return ResNet(num_classes, (3, 4, 23, 3), bottleneck=True, **options)
