"""The gradients of a convolution in forms that are fast on a CPU.

JAX writes both gradients of a convolution as convolutions, for which neither XLA nor oneDNN's forward kernel
is made:

- the gradient of the kernel has a window as large as the image. Here it is a product of matrices: the patches
  of the image and the gradient of the output;
- the gradient of the input of a convolution with a stride has zeros between its elements. Here it is one
  convolution without zeros for each residue of the position modulo the stride.

Shapes: N examples, S spatial axes of the inputs, T of the outputs, K of the kernel, I input and O output
channels, M positions of outputs in all examples, P elements of a patch.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Padding = Sequence[tuple[int, int]]

_PATCH_BYTES = 8 * 2**20  # patches of more examples at once fall out of the caches
_MAX_COPIES = 9  # each is compiled on its own, as a kernel of XLA


def is_channels_last(dimension_numbers: Any) -> bool:
    """Returns whether inputs and outputs are (N, *S, C), which oneDNN takes without a copy."""
    num_dims = len(dimension_numbers.lhs_spec)
    expected = (0, num_dims - 1, *range(1, num_dims - 1))
    return expected == tuple(dimension_numbers.lhs_spec) == tuple(dimension_numbers.out_spec)


def is_kernel_gradient(dimension_numbers: Any) -> bool:
    """Returns whether this is the gradient of a kernel (*K, I, O) of a convolution of inputs (N, *S, I)."""
    num_dims = len(dimension_numbers.lhs_spec)
    swapped = (num_dims - 1, 0, *range(1, num_dims - 1))
    return swapped == tuple(dimension_numbers.lhs_spec) == tuple(dimension_numbers.rhs_spec) and (
        tuple(dimension_numbers.out_spec) == (num_dims - 2, num_dims - 1, *range(num_dims - 2))
    )


def is_faster_as_product(window: Sequence[int], channels: int) -> bool:
    """Returns whether the gradient of a kernel is faster as a product of patches than in XLA.

    Measured with 1 to 128 channels: patches of few channels cost more than the product, but XLA is slower
    still with fewer than four.
    """
    return math.prod(window) == 1 or channels < 4 or channels >= 16


def kernel_gradient(
    inputs_NSI: jax.Array,
    gradient_NTO: jax.Array,
    *,
    window: Sequence[int],
    strides: Sequence[int],
    padding: Padding,
    dilation: Sequence[int],
) -> jax.Array:
    """Returns the gradient (*K, I, O) of a kernel whose spatial sizes are `window`."""
    channels, features = inputs_NSI.shape[-1], gradient_NTO.shape[-1]
    num_examples, *sizes = gradient_NTO.shape[:-1]
    length = math.prod(window) * channels

    def of_part(inputs_NSI: jax.Array, gradient_NTO: jax.Array) -> jax.Array:
        padded_NSI = pad(inputs_NSI, padding)
        patches_NTP = patches_of(padded_NSI, sizes, window=window, strides=strides, dilation=dilation)
        patches_MP = patches_NTP.reshape(-1, length)
        gradient_MO = gradient_NTO.reshape(-1, features)
        return lax.dot_general(gradient_MO, patches_MP, (((0,), (0,)), ((), ()))).T  # as JAX writes it

    at_once = _examples_at_once(num_examples, math.prod(sizes) * length * inputs_NSI.dtype.itemsize)
    if math.prod(window) == 1 or at_once == num_examples:
        total_PO = of_part(inputs_NSI, gradient_NTO)
    else:

        def add(total_PO: jax.Array, part: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
            return total_PO + of_part(*part), None

        parts = tuple(array.reshape(-1, at_once, *array.shape[1:]) for array in (inputs_NSI, gradient_NTO))
        total_PO, _ = lax.scan(add, jnp.zeros((length, features), gradient_NTO.dtype), parts)
    return total_PO.reshape(*window, channels, features)


def pad(inputs_NSI: jax.Array, padding: Padding, spacing: Sequence[int] | None = None) -> jax.Array:
    """Returns inputs padded with zeros, with gaps of `spacing - 1` zeros between their elements."""
    gaps = [step - 1 for step in spacing] if spacing else [0] * len(padding)
    config = [(low, high, gap) for (low, high), gap in zip(padding, gaps, strict=True)]
    return lax.pad(inputs_NSI, jnp.zeros((), inputs_NSI.dtype), ((0, 0, 0), *config, (0, 0, 0)))


def patches_of(
    padded_NSI: jax.Array,
    sizes: Sequence[int],
    *,
    window: Sequence[int],
    strides: Sequence[int],
    dilation: Sequence[int],
) -> jax.Array:
    """Returns the patches (N, *T, P) that a kernel meets; `sizes` are those of T. P holds window and I."""
    if tuple(strides) == tuple(window) and set(dilation) == {1}:  # they do not overlap
        num_axes = len(sizes)
        limits = [size * step for size, step in zip(sizes, strides, strict=True)]
        padded_NSI = lax.slice(
            padded_NSI, (0,) * padded_NSI.ndim, (len(padded_NSI), *limits, padded_NSI.shape[-1])
        )
        split = [number for pair in zip(sizes, window, strict=True) for number in pair]
        order = (0, *range(1, 2 * num_axes, 2), *range(2, 2 * num_axes + 1, 2), 2 * num_axes + 1)
        apart = padded_NSI.reshape(len(padded_NSI), *split, padded_NSI.shape[-1]).transpose(order)
        return apart.reshape(len(padded_NSI), *sizes, -1)
    if math.prod(window) <= _MAX_COPIES:
        copies = shifted_copies(padded_NSI, sizes, window=window, strides=strides, dilation=dilation)
        return jnp.concatenate(copies, axis=-1)
    for axis in reversed(range(len(sizes))):  # one axis after the other: a sum of copies, not a product
        one = [slice(None)] * (axis + 1)
        span = (sizes[axis] - 1) * strides[axis] + 1
        offsets = [tap * dilation[axis] for tap in range(window[axis])]
        copies = [padded_NSI[(*one, slice(low, low + span, strides[axis]))] for low in offsets]
        padded_NSI = jnp.concatenate(copies, axis=-1)
    return padded_NSI


def shifted_copies(
    padded_NSI: jax.Array,
    sizes: Sequence[int],
    *,
    window: Sequence[int],
    strides: Sequence[int],
    dilation: Sequence[int],
) -> list[jax.Array]:
    """Returns, for each element of a kernel, the inputs (N, *T, I) that it meets; `sizes` are those of T."""
    copies = []
    for taps in itertools.product(*map(range, window)):
        offsets = [tap * step for tap, step in zip(taps, dilation, strict=True)]
        spans = [(size - 1) * stride + 1 for size, stride in zip(sizes, strides, strict=True)]
        limits = [offset + span for offset, span in zip(offsets, spans, strict=True)]
        shape = padded_NSI.shape
        copies.append(
            lax.slice(padded_NSI, (0, *offsets, 0), (shape[0], *limits, shape[-1]), (1, *strides, 1))
        )
    return copies


def _examples_at_once(num_examples: int, patch_bytes: int) -> int:
    """Returns the largest divisor of the number of examples whose patches fit into the caches, at least 1."""
    divisors = (n for n in range(1, num_examples + 1) if num_examples % n == 0)
    return max((n for n in divisors if n * patch_bytes <= _PATCH_BYTES), default=1)


def of_cropped(
    inputs: jax.Array, kernel: jax.Array, *, padding: Padding, dimension_numbers: Any, **options: Any
) -> jax.Array:
    """Returns the convolution of inputs that are cropped where their padding is negative.

    XLA's own kernel for CPUs reads memory outside of such inputs.
    """
    config = [(0, 0, 0)] * inputs.ndim
    for axis, (low, high) in zip(dimension_numbers.lhs_spec[2:], padding, strict=True):
        config[axis] = (min(low, 0), min(high, 0), 0)
    return lax.conv_general_dilated(
        lax.pad(inputs, jnp.zeros((), inputs.dtype), config),
        kernel,
        padding=[(max(low, 0), max(high, 0)) for low, high in padding],
        dimension_numbers=dimension_numbers,
        **options,
    )


def without_zeros(
    inputs_NSI: jax.Array,
    kernel: jax.Array,
    *,
    spacing: Sequence[int],
    padding: Padding,
    dimension_numbers: Any,
    groups: int,
) -> jax.Array:
    """Returns the convolution, with a stride of 1, of inputs between whose elements lie `spacing - 1` zeros.

    Output o depends on kernel element i if element o - low + i of the input is not one of the zeros, that is,
    if i is (low - o) modulo the spacing. The outputs of each residue of o are a convolution with every such
    element.
    """
    axes = dimension_numbers.rhs_spec[2:]
    num_axes = len(axes)
    sizes = [
        (inputs_NSI.shape[1 + d] - 1) * spacing[d] + 1 + sum(padding[d]) - kernel.shape[axes[d]] + 1
        for d in range(num_axes)
    ]
    counts = [-(-sizes[d] // spacing[d]) for d in range(num_axes)]  # outputs of each residue
    features = kernel.shape[dimension_numbers.rhs_spec[0]]

    def of_residues(residues: Sequence[int]) -> jax.Array:
        starts, pads = [0] * kernel.ndim, []
        for d, axis in enumerate(axes):
            first = (padding[d][0] - residues[d]) % spacing[d]
            # The element of the input that the first output of these residues meets.
            shift = (residues[d] - padding[d][0] + first) // spacing[d]
            taps = len(range(first, kernel.shape[axis], spacing[d]))
            if taps == 0:
                return jnp.zeros((inputs_NSI.shape[0], *counts, features), inputs_NSI.dtype)
            starts[axis] = first
            pads.append((-shift, counts[d] + taps - 1 - inputs_NSI.shape[1 + d] + shift))
        steps = [1] * kernel.ndim
        for d, axis in enumerate(axes):
            steps[axis] = spacing[d]
        part = lax.slice(kernel, starts, kernel.shape, steps)
        return lax.conv_general_dilated(
            inputs_NSI,
            part,
            (1,) * num_axes,
            pads,
            dimension_numbers=dimension_numbers,
            feature_group_count=groups,
        )

    def interleave(axis: int, residues: tuple[int, ...]) -> jax.Array:
        if axis == num_axes:
            return of_residues(residues)
        parts = [interleave(axis + 1, (*residues, residue)) for residue in range(spacing[axis])]
        stacked = jnp.stack(parts, axis=axis + 2)
        shape = (*stacked.shape[: axis + 1], counts[axis] * spacing[axis], *stacked.shape[axis + 3 :])
        return lax.slice_in_dim(stacked.reshape(shape), 0, sizes[axis], axis=axis + 1)

    return interleave(0, ())
