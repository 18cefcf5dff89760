"""How matrix products and convolutions pass the labels of channels on.

A product contracts a channel of its input with the rows of a kernel. Both are removed together.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dl.methods.channels.labels import Axis, Labels, Value


def dot_general(labels: Labels, equation: Any, values: Sequence[Value]) -> list[Value]:
    """Contracted and batched axes are those of both operands; the other axes pass."""
    contracted, batched = equation.params["dimension_numbers"]
    left, right = values[:2]
    for a, b in zip(*contracted, strict=True):
        labels.unite(left.axes[a], right.axes[b])
        if not (left.is_zero[a] or right.is_zero[b]):
            labels.freeze(left.axes[a])
    axes, zeros = [], []
    for a, b in zip(*batched, strict=True):
        axes.append(labels.unite(left.axes[a], right.axes[b]))
        zeros.append(left.is_zero[a] or right.is_zero[b])
    for value, own, common in ((left, contracted[0], batched[0]), (right, contracted[1], batched[1])):
        free = [axis for axis in range(len(value.axes)) if axis not in (*own, *common)]
        axes += [value.axes[axis] for axis in free]
        zeros += [value.is_zero[axis] for axis in free]
    return [Value(tuple(axes), tuple(zeros))]


def convolution(labels: Labels, equation: Any, values: Sequence[Value]) -> list[Value]:
    """Channels in and out are the axes of the kernel. A depthwise convolution keeps the channels.

    In a convolution with other groups every group loses the same positions, so that the groups stay equal.
    """
    numbers, groups = equation.params["dimension_numbers"], equation.params["feature_group_count"]
    inputs, kernel = values[:2]
    batch, channels_in, *pixels = numbers.lhs_spec
    out, of_group, *window = numbers.rhs_spec
    if equation.params["batch_group_count"] != 1:
        labels.freeze(*inputs.axes, *kernel.axes)
    labels.freeze(*(inputs.axes[axis] for axis in pixels), *(kernel.axes[axis] for axis in window))
    x_C, w_I, w_O = inputs.axes[channels_in], kernel.axes[of_group], kernel.axes[out]
    is_zero = kernel.is_zero[out]
    contracts = True
    if groups == 1:
        labels.unite(x_C, w_I)
    elif equation.invars[1].aval.shape[of_group] == 1:
        size = equation.invars[1].aval.shape[out]
        labels.unite(w_O, None if x_C is None else np.repeat(x_C, size // groups))
        labels.freeze(w_I)
        contracts, is_zero = False, is_zero or inputs.is_zero[channels_in]
    else:
        labels.unite(_of_first_group(labels, x_C, groups), w_I)
        _of_first_group(labels, w_O, groups)
    if contracts and not (inputs.is_zero[channels_in] or kernel.is_zero[of_group]):
        labels.freeze(x_C)
    axes: list[Axis] = [None] * len(inputs.axes)
    zeros = [False] * len(inputs.axes)
    axes[numbers.out_spec[0]], zeros[numbers.out_spec[0]] = inputs.axes[batch], inputs.is_zero[batch]
    axes[numbers.out_spec[1]], zeros[numbers.out_spec[1]] = w_O, is_zero
    return [Value(tuple(axes), tuple(zeros))]


def _of_first_group(labels: Labels, axis: Axis, groups: int) -> Axis:
    """Unites equal positions of all groups, and returns the labels of the first one."""
    if axis is None:
        return None
    rows = axis.reshape(groups, -1)
    for row in rows[1:]:
        labels.unite(rows[0], row)
    return rows[0]
