"""Inception-v3: blocks of parallel towers of factorised convolutions.

Shapes: B batch, H height, W width, C channels, N classes.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dl.models.dropout import Dropout
from dl.models.layers import ConvNorm, global_mean_pool
from dl.models.scaling import Scaling, minus_one_to_one


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer of a tower: one convolution with ReLU, or several in parallel.

    Attributes:
      channels: number of channels of each convolution.
      kernels: height and width of each kernel. The outputs are concatenated.
      strides: stride of both axes. A layer of stride 2 is not padded.
    """

    channels: int
    kernels: Sequence[tuple[int, int]] = ((1, 1),)
    strides: int = 1


@dataclasses.dataclass(frozen=True)
class Block:
    """Parallel towers and a pooling, whose outputs are concatenated.

    Attributes:
      towers: the towers. Each one is a sequence of layers.
      pool_channels: number of channels of a 1×1 convolution after a mean-pool of stride 1. `None` means a
        max-pool of stride 2 without a convolution, in a block that halves the image.
    """

    towers: Sequence[Sequence[Layer]]
    pool_channels: int | None = None


ONE, THREE, FIVE = ((1, 1),), ((3, 3),), ((5, 5),)
ROW, COLUMN, FORK = ((1, 7),), ((7, 1),), ((1, 3), (3, 1))


def inception_a(pool_channels: int) -> Block:
    """Returns the block of fig. 5, with a 5×5 convolution and, in parallel, two 3×3 convolutions."""
    return Block(
        (
            (Layer(64),),
            (Layer(48), Layer(64, FIVE)),
            (Layer(64), Layer(96, THREE), Layer(96, THREE)),
        ),
        pool_channels,
    )


def reduction_a() -> Block:
    """Returns the block of fig. 10 that halves 35×35."""
    return Block(
        (
            (Layer(384, THREE, strides=2),),
            (Layer(64), Layer(96, THREE), Layer(96, THREE, strides=2)),
        )
    )


def inception_b(channels: int) -> Block:
    """Returns the block of fig. 6 with `channels` inner channels: 7×7 factorised into 1×7 and 7×1."""
    return Block(
        (
            (Layer(192),),
            (Layer(channels), Layer(channels, ROW), Layer(192, COLUMN)),
            (
                Layer(channels),
                Layer(channels, COLUMN),
                Layer(channels, ROW),
                Layer(channels, COLUMN),
                Layer(192, ROW),
            ),
        ),
        pool_channels=192,
    )


def reduction_b() -> Block:
    """Returns the block that halves 17×17."""
    return Block(
        (
            (Layer(192), Layer(320, THREE, strides=2)),
            (Layer(192), Layer(192, ROW), Layer(192, COLUMN), Layer(192, THREE, strides=2)),
        )
    )


def inception_c() -> Block:
    """Returns the block of fig. 7: towers that fork into 1×3 and 3×1."""
    return Block(
        (
            (Layer(320),),
            (Layer(384), Layer(384, FORK)),
            (Layer(448), Layer(384, THREE), Layer(384, FORK)),
        ),
        pool_channels=192,
    )


V3_BLOCKS = (
    *(inception_a(channels) for channels in (32, 64, 64)),
    reduction_a(),
    *(inception_b(channels) for channels in (128, 160, 160, 192)),
    reduction_b(),
    *(inception_c() for _ in range(2)),
)


class Inception(nn.Module):
    """A stem of six convolutions and a sequence of Inception blocks (Szegedy et al. 2016, table 1).

    As in the authors' code, batch normalisation has no scale, because a ReLU and a linear layer follow it.
    There is no auxiliary classifier. The smallest image is 75×75.

    Attributes:
      num_classes: number of classes, N. `None` means a network without a head, which returns features of
        shape (B, C).
      blocks: the blocks after the stem.
      width: factor on the number of channels of all layers.
      dropout: probability that a feature before the head is dropped in training.
      momentum: decay of the running statistics in each training step.
      scaling: function from pixels in [0, 1] to the input range of the network.
      dtype: dtype of the computation; parameters stay float32. `None` means that of inputs and parameters.
    """

    num_classes: int | None
    blocks: Sequence[Block] = V3_BLOCKS
    width: float = 1.0
    dropout: float = 0.2
    momentum: float = 0.9
    scaling: Scaling = minus_one_to_one
    dtype: Any = None

    @nn.compact
    def __call__(self, image_BHWC: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits of shape (B, N), or features of shape (B, C) without a head."""

        def conv(x_BHWC: jax.Array, channels: int, name: str, **options: Any) -> jax.Array:
            module = ConvNorm(
                max(1, round(channels * self.width)),
                epsilon=1e-3,
                momentum=self.momentum,
                use_scale=False,
                dtype=self.dtype,
                name=name,
                **options,
            )
            return module(x_BHWC, train)

        x_BHWC = self.scaling(image_BHWC)
        x_BHWC = conv(x_BHWC, 32, "stem_conv0", strides=2, padding="VALID")
        x_BHWC = conv(x_BHWC, 32, "stem_conv1", padding="VALID")
        x_BHWC = conv(x_BHWC, 64, "stem_conv2")
        x_BHWC = half(x_BHWC)
        x_BHWC = conv(x_BHWC, 80, "stem_conv3", kernel=(1, 1))
        x_BHWC = conv(x_BHWC, 192, "stem_conv4", padding="VALID")
        x_BHWC = half(x_BHWC)

        for number, block in enumerate(self.blocks):
            outputs = []
            for tower_number, tower in enumerate(block.towers):
                y_BHWC = x_BHWC
                for index, layer in enumerate(tower):
                    name = f"block{number}_tower{tower_number}_conv{index}"
                    forks = [
                        conv(
                            y_BHWC,
                            layer.channels,
                            name if len(layer.kernels) == 1 else f"{name}_fork{fork}",
                            kernel=kernel,
                            strides=layer.strides,
                            padding="SAME" if layer.strides == 1 else "VALID",
                        )
                        for fork, kernel in enumerate(layer.kernels)
                    ]
                    y_BHWC = jnp.concatenate(forks, -1)
                outputs.append(y_BHWC)
            if block.pool_channels is None:
                outputs.append(half(x_BHWC))
            else:
                mean_BHWC = nn.avg_pool(x_BHWC, (3, 3), padding="SAME", count_include_pad=False)
                outputs.append(conv(mean_BHWC, block.pool_channels, f"block{number}_pool", kernel=(1, 1)))
            x_BHWC = jnp.concatenate(outputs, -1)

        features_BC = global_mean_pool(x_BHWC)
        if self.num_classes is None:
            return features_BC
        features_BC = Dropout(self.dropout, deterministic=not train)(features_BC)
        return nn.Dense(self.num_classes, dtype=self.dtype, name="head")(features_BC)


def half(x_BHWC: jax.Array) -> jax.Array:
    """Returns the maximum of each 3×3 window, stride 2, without padding."""
    return nn.max_pool(x_BHWC, (3, 3), strides=(2, 2))


def inception_v3(num_classes: int | None = 1000, **options: Any) -> Inception:
    """Returns Inception-v3, for images of 299×299.

    For 1000 classes it has 23,817,352 parameters and 34,432 running statistics.
    """
    return Inception(num_classes, **options)
