"""Depthwise convolutions, which apply one filter to each channel, in forms that are fast on a CPU.

XLA's grouped convolution is ten to sixty times slower on a CPU than a sum of shifted copies of the image, one
for each element of the kernel, which XLA compiles to one loop over memory. oneDNN's kernel is 1.5 to
six times faster again.

Shapes: N examples, S spatial axes of the inputs, T of the outputs, K of the kernel, C channels.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from dl.system.onednn.convolution import Padding, pad, shifted_copies


def shifted_sum(
    inputs_NSC: jax.Array,
    kernel: jax.Array,
    *,
    sizes: Sequence[int],
    strides: Sequence[int],
    padding: Padding,
    spacing: Sequence[int],
    dilation: Sequence[int],
    kernel_spec: Sequence[int],
) -> jax.Array:
    """Returns the convolution (N, *T, C) as a sum of shifted copies; `sizes` are those of T."""
    taps_KC = kernel.transpose(*kernel_spec[2:], kernel_spec[1], kernel_spec[0])
    window, channels = taps_KC.shape[:-2], taps_KC.shape[-1]
    padded_NSC = pad(inputs_NSC, padding, spacing)
    copies = shifted_copies(padded_NSC, sizes, window=window, strides=strides, dilation=dilation)
    taps = taps_KC.reshape(-1, *(1,) * (inputs_NSC.ndim - 1), channels)
    return sum((copy * tap for copy, tap in zip(copies[1:], taps[1:], strict=True)), copies[0] * taps[0])


def kernel_gradient(
    inputs_NSC: jax.Array,
    gradient_NTC: jax.Array,
    *,
    window: Sequence[int],
    strides: Sequence[int],
    padding: Padding,
    dilation: Sequence[int],
) -> jax.Array:
    """Returns the gradient (*K, 1, C) of a kernel as a sum over each shifted copy."""
    axes = tuple(range(gradient_NTC.ndim - 1))
    sizes, padded_NSC = gradient_NTC.shape[1:-1], pad(inputs_NSC, padding)
    copies = shifted_copies(padded_NSC, sizes, window=window, strides=strides, dilation=dilation)
    sums = jnp.stack([(copy * gradient_NTC).sum(axes) for copy in copies])
    return sums.reshape(*window, 1, -1)


def kernel_gradient_by_convolution(
    inputs_NSC: jax.Array,
    gradient_NTC: jax.Array,
    *,
    window: Sequence[int],
    strides: Sequence[int],
    padding: Padding,
    dilation: Sequence[int],
) -> jax.Array:
    """Returns the gradient (*K, 1, C) of a kernel by a depthwise convolution with N · C channels.

    The gradient of the output is the kernel of that convolution, and the elements of the gradient are its
    positions.
    """
    num_examples, channels = inputs_NSC.shape[0], inputs_NSC.shape[-1]
    spatial = range(1, inputs_NSC.ndim - 1)

    def examples_as_channels(array: jax.Array) -> jax.Array:
        return array.transpose(*spatial, 0, array.ndim - 1).reshape(*array.shape[1:-1], -1)

    inputs = examples_as_channels(inputs_NSC)
    last = inputs.ndim  # the axis of channels
    data_spec, kernel_spec = (0, last, *spatial), (last, last - 1, *range(last - 1))
    gradient_KNC = lax.conv_general_dilated(
        inputs[None],
        examples_as_channels(gradient_NTC)[..., None, :],
        dilation,
        padding,
        rhs_dilation=strides,
        feature_group_count=num_examples * channels,
        dimension_numbers=lax.ConvDimensionNumbers(data_spec, kernel_spec, data_spec),
    )
    return gradient_KNC.reshape(*window, num_examples, channels).sum(-2)[..., None, :]


def is_depthwise(inputs: Any, kernel: Any, kernel_spec: Sequence[int], groups: int) -> bool:
    """Returns whether each channel has one filter of its own."""
    return groups > 1 and inputs.shape[-1] == groups == kernel.shape[kernel_spec[0]]
