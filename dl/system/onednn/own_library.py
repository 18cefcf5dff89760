"""Convolutions and products of JAX as computations of oneDNN's own library.

All three products of a convolution have a kernel there: the convolution, the gradient of its input and that
of its kernel, each with any strides, dilation and groups.

Shapes: N examples, S spatial axes of the inputs, T of the outputs, K of the kernel, I input and O output
channels, G groups.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import mlir

from dl.system.onednn import foreign
from dl.system.onednn.computation import Layout, Window, dense
from dl.system.onednn.convolution import Padding, is_channels_last, is_kernel_gradient

Form = Callable[[jax.Array, jax.Array], jax.Array]
"""A function of the two arrays of a convolution or of a product."""

computation_p = Primitive("onednn_computation")


@computation_p.def_abstract_eval
def _type(*_: Any, shape: Sequence[int], text: str) -> jax.core.ShapedArray:
    del text
    return jax.core.ShapedArray(tuple(shape), jnp.float32)


def _lowered(ctx: Any, *arrays: Any, shape: Sequence[int], text: str) -> Any:
    del shape
    return foreign.call(ctx, arrays, text)


mlir.register_lowering(computation_p, _lowered, platform="cpu")


def of_product(left: Sequence[int], right: Sequence[int], is_transposed: Sequence[bool]) -> Form | None:
    """Returns the product of two matrices, or `None` if the library is missing.

    Args:
      left: shape of the first matrix in memory.
      right: shape of the second one.
      is_transposed: whether each of them is to be transposed before.
    """
    if not foreign.is_available():
        return None
    rows, length = reversed(left) if is_transposed[0] else left
    columns = right[0] if is_transposed[1] else right[1]
    layouts = (
        dense((rows, length), (1, 0) if is_transposed[0] else (0, 1)),
        dense((length, columns), (1, 0) if is_transposed[1] else (0, 1)),
        dense((rows, columns), (0, 1)),
    )
    return _form((rows, columns), "product", *layouts)


def of_convolution(
    inputs: Any,
    kernel: Any,
    outputs: Any,
    *,
    dimension_numbers: Any,
    window_strides: Sequence[int],
    padding: Padding,
    lhs_dilation: Sequence[int],
    rhs_dilation: Sequence[int],
    feature_group_count: int,
    batch_group_count: int,
) -> Form | None:
    """Returns a convolution as JAX describes it, or `None` if the library is missing or does not have it.

    Args:
      inputs: shape and dtype of the inputs; the other two likewise.
      kernel: of the kernel.
      outputs: of the outputs.
      dimension_numbers: see `lax.conv_general_dilated`, also for all others.
    """
    if not foreign.is_available():
        return None
    is_dense = set(lhs_dilation) == {1}
    if is_dense and is_kernel_gradient(dimension_numbers):
        if feature_group_count > 1:
            return None
        return _kernel_gradient(
            *(inputs.shape, kernel.shape, outputs.shape),
            # The strides of the layer dilate the gradient of its output, which is the kernel here.
            strides=rhs_dilation,
            dilation=window_strides,
            low=[low for low, _ in padding],
            groups=batch_group_count,
        )
    if not is_channels_last(dimension_numbers) or batch_group_count != 1:
        return None
    options = {"dilation": rhs_dilation, "groups": feature_group_count, "spec": dimension_numbers.rhs_spec}
    shapes = (inputs.shape, kernel.shape, outputs.shape)
    if is_dense:
        return _forward(*shapes, strides=window_strides, padding=padding, **options)
    if set(window_strides) == {1}:
        return _input_gradient(*shapes, strides=lhs_dilation, padding=padding, **options)
    return None


def _form(shape: Sequence[int], *computation: Any) -> Form | None:
    text = foreign.text_of(*computation)
    return None if text is None else functools.partial(computation_p.bind, shape=tuple(shape), text=text)


def _forward(
    inputs: Sequence[int],
    kernel: Sequence[int],
    outputs: Sequence[int],
    *,
    strides: Sequence[int],
    padding: Padding,
    dilation: Sequence[int],
    groups: int,
    spec: Sequence[int],
) -> Form | None:
    low, high = zip(*padding, strict=True)
    layouts = _channels_last(inputs), _of_kernel(kernel, spec, groups, spec[0]), _channels_last(outputs)
    return _form(outputs, "forward", *layouts, _window(strides, dilation, low, high))


def _input_gradient(
    gradient: Sequence[int],
    kernel: Sequence[int],
    inputs: Sequence[int],
    *,
    strides: Sequence[int],
    padding: Padding,
    dilation: Sequence[int],
    groups: int,
    spec: Sequence[int],
) -> Form | None:
    """Returns the gradient of the inputs, which JAX writes as a convolution with the reversed kernel."""
    axes = spec[2:]
    spans = [(kernel[axis] - 1) * step for axis, step in zip(axes, dilation, strict=True)]
    low = [span - before for span, (before, _) in zip(spans, padding, strict=True)]
    high = _rest(gradient[1:-1], inputs[1:-1], strides, spans, low)
    forward_spec = (spec[1], spec[0], *axes)  # its outputs are the inputs of this convolution
    layouts = (
        _channels_last(inputs),
        _of_kernel(kernel, forward_spec, groups, spec[0]),
        _channels_last(gradient),
    )
    form = _form(inputs, "input_gradient", *layouts, _window(strides, dilation, low, high))
    return form and (lambda gradient, kernel: form(gradient, lax.rev(kernel, axes)))


def _kernel_gradient(
    inputs: Sequence[int],
    gradient: Sequence[int],
    kernel: Sequence[int],
    *,
    strides: Sequence[int],
    dilation: Sequence[int],
    low: Sequence[int],
    groups: int,
) -> Form | None:
    """Returns the gradient (*K, I/G, O) of a kernel."""
    num_axes = len(strides)
    spans = [(size - 1) * step for size, step in zip(kernel[:num_axes], dilation, strict=True)]
    high = _rest(gradient[1:-1], inputs[1:-1], strides, spans, low)
    spec = (num_axes + 1, num_axes, *range(num_axes))
    layouts = _channels_last(inputs), _of_kernel(kernel, spec, groups, spec[0]), _channels_last(gradient)
    return _form(kernel, "kernel_gradient", *layouts, _window(strides, dilation, low, high))


def _rest(
    outputs: Sequence[int],
    inputs: Sequence[int],
    strides: Sequence[int],
    spans: Sequence[int],
    low: Sequence[int],
) -> list[int]:
    """Returns the padding at the end with which a convolution has outputs of these sizes."""
    axes = zip(outputs, inputs, strides, spans, low, strict=True)
    return [(num - 1) * step + span + 1 - size - before for num, size, step, span, before in axes]


def _channels_last(shape: Sequence[int]) -> Layout:
    """Returns the layout (N, C, *S) of an array of shape (N, *S, C)."""
    examples, *sizes, channels = shape
    return dense((examples, channels, *sizes), (0, *range(2, len(shape)), 1))


def _of_kernel(shape: Sequence[int], spec: Sequence[int], groups: int, grouped: int) -> Layout:
    """Returns the layout (O, I, *K) of a kernel, or (G, O/G, I/G, *K).

    Args:
      shape: its shape in memory.
      spec: its axes of output channels, of input channels and of space.
      groups: number of groups, G.
      grouped: the axis of memory that holds the channels of all groups.
    """
    sizes = [shape[axis] for axis in spec]
    order = [spec.index(axis) for axis in range(len(shape))]
    if groups == 1:
        return dense(sizes, order)
    at = spec.index(grouped)
    sizes[at] //= groups
    order = [number for axis in order for number in ((0, axis + 1) if axis == at else (axis + 1,))]
    return dense((groups, *sizes), order)


def _window(
    strides: Sequence[int], dilation: Sequence[int], low: Sequence[int], high: Sequence[int]
) -> Window:
    return Window(tuple(strides), tuple(dilation), tuple(low), tuple(high))
