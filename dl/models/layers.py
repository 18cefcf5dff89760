"""Building blocks that several families of convolutional networks share.

Shapes: B batch, H height, W width, C channels.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class DepthwiseConv(nn.Module):
    """A convolution without bias that applies one filter to each channel (Howard et al. 2017, eq. 3).

    Attributes:
      kernel: height and width of the kernel.
      strides: stride of both axes.
      padding: padding in a form that `nn.Conv` accepts.
      dtype: dtype of the computation; parameters stay float32. `None` means that of inputs and parameters.
    """

    kernel: tuple[int, int] = (3, 3)
    strides: int = 1
    padding: Any = "SAME"
    dtype: Any = None

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        num_channels = x_BHWC.shape[-1]
        kernel = self.param(
            "kernel", nn.initializers.he_normal(), (*self.kernel, 1, num_channels), jnp.float32
        )
        x_BHWC, kernel = nn.dtypes.promote_dtype(x_BHWC, kernel, dtype=self.dtype)
        return jax.lax.conv_general_dilated(
            x_BHWC,
            kernel,
            (self.strides, self.strides),
            self.padding if isinstance(self.padding, str) else [(self.padding, self.padding)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=num_channels,
        )


class ConvNorm(nn.Module):
    """A convolution without bias, batch normalisation, an activation (Ioffe & Szegedy 2015, 3.2).

    Its parameters are `conv/kernel` and `norm/{scale,bias}`. Its statistics are `norm/{mean,var}`.

    Attributes:
      channels: number of output channels.
      kernel: height and width of the kernel.
      strides: stride of both axes.
      padding: padding in a form that `nn.Conv` accepts.
      groups: number of groups of channels that are convolved separately. If it is the number of channels, the
        convolution is depthwise.
      activation: function that is applied last. `None` means that there is none.
      epsilon: number that is added to the variance.
      momentum: decay of the running statistics in each training step.
      use_scale: whether the normalisation has a trained scale. It has no effect before a ReLU and a linear
        layer.
      scale_init: initializer of that scale.
      dtype: dtype of the computation. Parameters and statistics stay float32. `None` means the dtype of
        inputs and parameters.
    """

    channels: int
    kernel: tuple[int, int] = (3, 3)
    strides: int = 1
    padding: Any = "SAME"
    groups: int = 1
    activation: Callable[[jax.Array], jax.Array] | None = nn.relu
    epsilon: float = 1e-5
    momentum: float = 0.9
    use_scale: bool = True
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    dtype: Any = None

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, train: bool = False) -> jax.Array:
        if self.groups == self.channels == x_BHWC.shape[-1]:
            x_BHWC = DepthwiseConv(self.kernel, self.strides, self.padding, self.dtype, name="conv")(x_BHWC)
        else:
            x_BHWC = nn.Conv(
                self.channels,
                self.kernel,
                strides=self.strides,
                padding=self.padding,
                feature_group_count=self.groups,
                use_bias=False,
                kernel_init=nn.initializers.he_normal(),
                dtype=self.dtype,
                name="conv",
            )(x_BHWC)
        x_BHWC = nn.BatchNorm(
            use_running_average=not train,
            momentum=self.momentum,
            epsilon=self.epsilon,
            use_scale=self.use_scale,
            scale_init=self.scale_init,
            dtype=self.dtype,
            name="norm",
        )(x_BHWC)
        return x_BHWC if self.activation is None else self.activation(x_BHWC)


def global_mean_pool(x_BHWC: jax.Array) -> jax.Array:
    """Returns the mean over height and width, shape (B, C) (Lin et al. 2014, 3.2).

    Raises:
      ValueError: the image has no pixels left.
    """
    require_pixels(x_BHWC)
    return x_BHWC.mean((1, 2))


def require_pixels(x_BHWC: jax.Array) -> None:
    """Raises ValueError if the strides of the previous layers have left no pixel."""
    if 0 in x_BHWC.shape[1:3]:
        raise ValueError(
            f"after the strides the image is {x_BHWC.shape[1]}x{x_BHWC.shape[2]} pixels; use larger images"
        )
