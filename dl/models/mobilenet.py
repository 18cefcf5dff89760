"""MobileNetV2: inverted residuals with linear bottlenecks.

Shapes: B batch, H height, W width, C channels, N classes.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax

from dl.models.dropout import Dropout
from dl.models.layers import ConvNorm, global_mean_pool
from dl.models.scaling import Scaling, minus_one_to_one


class InvertedResidual(nn.Module):
    """A 1×1 expansion, a depthwise 3×3 and a linear 1×1 convolution (Sandler et al. 2018, table 1).

    The input is added to the output if they have the same shape.

    Attributes:
      channels: number of output channels.
      expansion: factor from the number of input channels to that of the depthwise convolution. If it is 1,
        there is no expansion layer.
      strides: stride of the depthwise convolution.
      momentum: decay of the running statistics in each training step.
      dtype: dtype of the computation; parameters stay float32. `None` means that of inputs and parameters.
    """

    channels: int
    expansion: int = 6
    strides: int = 1
    momentum: float = 0.99
    dtype: Any = None

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, train: bool = False) -> jax.Array:
        conv = functools.partial(
            ConvNorm, activation=nn.relu6, epsilon=1e-3, momentum=self.momentum, dtype=self.dtype
        )
        inner = x_BHWC.shape[-1] * self.expansion
        y_BHWC = x_BHWC
        if self.expansion != 1:
            y_BHWC = conv(inner, (1, 1), name="expand")(y_BHWC, train)
        y_BHWC = conv(inner, strides=self.strides, groups=inner, name="depthwise")(y_BHWC, train)
        y_BHWC = conv(self.channels, (1, 1), activation=None, name="project")(y_BHWC, train)
        return x_BHWC + y_BHWC if x_BHWC.shape == y_BHWC.shape else y_BHWC


# Sandler et al. 2018, table 2: expansion, channels, repeats, stride of the first block.
V2_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class MobileNetV2(nn.Module):
    """A stem, stages of inverted residuals and a wide 1×1 convolution (Sandler et al. 2018, table 2).

    Strided convolutions are padded as in TensorFlow, in which the published weights were trained.

    Attributes:
      num_classes: number of classes, N. `None` means a network without a head, which returns features of
        shape (B, C).
      width: factor on the number of channels of all layers, which is rounded to a multiple of 8. It does not
        reduce the number of features.
      stages: (expansion, channels, repeats, stride of the first block) of each stage.
      features: number of channels of the last convolution, before the factor `width`.
      stem_strides: stride of the first convolution. A stride of 1 suits small images.
      dropout: probability that a feature before the head is dropped in training.
      momentum: decay of the running statistics in each training step.
      scaling: function from pixels in [0, 1] to the input range of the network.
      dtype: dtype of the computation; parameters stay float32. `None` means that of inputs and parameters.
    """

    num_classes: int | None
    width: float = 1.0
    stages: Sequence[tuple[int, int, int, int]] = V2_STAGES
    features: int = 1280
    stem_strides: int = 2
    dropout: float = 0.2
    momentum: float = 0.99
    scaling: Scaling = minus_one_to_one
    dtype: Any = None

    @nn.compact
    def __call__(self, image_BHWC: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits of shape (B, N), or features of shape (B, C) without a head."""
        conv = functools.partial(
            ConvNorm, activation=nn.relu6, epsilon=1e-3, momentum=self.momentum, dtype=self.dtype
        )
        x_BHWC = self.scaling(image_BHWC)
        x_BHWC = conv(round_channels(32 * self.width), strides=self.stem_strides, name="stem")(x_BHWC, train)
        number = 0
        for expansion, channels, repeats, strides in self.stages:
            for index in range(repeats):
                block = InvertedResidual(
                    round_channels(channels * self.width),
                    expansion,
                    strides if index == 0 else 1,
                    momentum=self.momentum,
                    dtype=self.dtype,
                    name=f"block{number}",
                )
                x_BHWC = block(x_BHWC, train)
                number += 1
        features = round_channels(self.features * max(1.0, self.width))
        x_BHWC = conv(features, (1, 1), name="last")(x_BHWC, train)
        features_BC = global_mean_pool(x_BHWC)
        if self.num_classes is None:
            return features_BC
        features_BC = Dropout(self.dropout, deterministic=not train)(features_BC)
        return nn.Dense(self.num_classes, dtype=self.dtype, name="head")(features_BC)


def round_channels(channels: float, divisor: int = 8) -> int:
    """Returns the nearest multiple of `divisor` that is at least 90 % of `channels` and not 0."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def mobilenet_v2(num_classes: int | None = 1000, width: float = 1.0, **options: Any) -> MobileNetV2:
    """Returns MobileNetV2.

    With width 1 and without a head it has 2,223,872 parameters and 34,112 running statistics.
    """
    return MobileNetV2(num_classes, width, **options)
