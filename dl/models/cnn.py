"""Small convolutional networks.

Shapes: B batch, H height, W width, C channels, N classes.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax

from dl.models.dropout import Dropout


class CNN(nn.Module):
    """Convolutions with ReLU, optionally each pooled, then dense layers (LeCun et al. 1998).

    Attributes:
      channels: number of channels of each convolution.
      hidden: width of each dense layer before the last one.
      num_classes: number of classes, N.
      pool: whether a 2×2 max-pool follows each convolution.
      padding: padding of the convolutions, VALID or SAME.
      crop: side of the central square that the network reads, in pixels. `None` means the whole image.
      kernel_size: height and width of the convolutions' kernels.
      dropout: probability that a unit of the dense layers is dropped in training.
      kernel_init: initializer of every kernel. The default is that of Linen.
      dtype: dtype of the computation; parameters stay float32. `None` means that of inputs and parameters.
    """

    channels: Sequence[int]
    hidden: Sequence[int]
    num_classes: int
    pool: bool = False
    padding: str = "VALID"
    crop: int | None = None
    kernel_size: tuple[int, int] = (3, 3)
    dropout: float = 0.0
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    dtype: Any = None

    @nn.compact
    def __call__(self, image_BHWC: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits of shape (B, N)."""
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=self.kernel_init)
        conv = functools.partial(
            nn.Conv,
            kernel_size=self.kernel_size,
            padding=self.padding,
            dtype=self.dtype,
            kernel_init=self.kernel_init,
        )
        x_BHWC = image_BHWC if self.crop is None else centre(image_BHWC, self.crop)
        for channels in self.channels:
            x_BHWC = nn.relu(conv(channels)(x_BHWC))
            if self.pool:
                x_BHWC = max_pool(x_BHWC)
        # The batch size is given, not inferred by -1: a wrong shape must fail instead of changing the batch.
        x_BD = x_BHWC.reshape(x_BHWC.shape[0], -1)
        for width in self.hidden:
            x_BD = nn.relu(dense(width)(x_BD))
            x_BD = Dropout(self.dropout, deterministic=not train)(x_BD)
        return dense(self.num_classes)(x_BD)


class ConvNet(nn.Module):
    """A convolutional network without normalisation. Each stage halves the image and has more channels.

    Every stage starts with a strided convolution (Springenberg et al. 2015). All stages but the first
    continue with one residual convolution (He et al. 2016). No layer mixes examples or keeps statistics, so
    the result depends neither on the number of devices nor on the batch size.

    Attributes:
      num_classes: number of classes, N.
      widths: number of channels of each stage.
      dropout: probability that a feature before the last layer is dropped in training.
      dtype: dtype of the computation; parameters stay float32. `None` means that of inputs and parameters.
    """

    num_classes: int
    widths: Sequence[int] = (32, 64, 128)
    dropout: float = 0.3
    dtype: Any = None

    @nn.compact
    def __call__(self, image_BHWC: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits of shape (B, N)."""
        stem, *stages = self.widths
        x_BHWC = nn.gelu(nn.Conv(stem, (5, 5), strides=2, dtype=self.dtype)(image_BHWC))
        for width in stages:
            x_BHWC = nn.gelu(nn.Conv(width, (3, 3), strides=2, dtype=self.dtype)(x_BHWC))
            x_BHWC += nn.gelu(nn.Conv(width, (3, 3), dtype=self.dtype)(x_BHWC))
        x_BD = x_BHWC.reshape(x_BHWC.shape[0], -1)
        x_BD = Dropout(self.dropout, deterministic=not train)(x_BD)
        return nn.Dense(self.num_classes, dtype=self.dtype)(x_BD)


def centre(image_BHWC: jax.Array, side: int) -> jax.Array:
    """Returns the central square of each image. An odd remainder is cut at the bottom and on the right."""
    top, left = ((size - side) // 2 for size in image_BHWC.shape[1:3])
    return image_BHWC[:, top : top + side, left : left + side]


def max_pool(x_BHWC: jax.Array, window: int = 2) -> jax.Array:
    """Returns the maximum of each window, with stride = window. A remainder at the border is dropped.

    It is computed as a reshape and a maximum, whose gradient is a comparison. The gradient of a windowed
    reduction is a scatter, which is several times slower on a CPU.
    """
    batch, height, width, channels = x_BHWC.shape
    rows, columns = height // window, width // window
    x_BHWC = x_BHWC[:, : rows * window, : columns * window]
    return x_BHWC.reshape(batch, rows, window, columns, window, channels).max((2, 4))
