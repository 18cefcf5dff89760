"""How operations that read or write a part of an array at computed indices pass the labels on.

Axes that are read or written as a whole pass. Others cannot be pruned.
"""

from collections.abc import Sequence
from typing import Any

from dl.methods.channels.labels import Labels, Value
from dl.methods.channels.passing import constant, without


def dynamic_slice(labels: Labels, equation: Any, values: Sequence[Value]) -> list[Value]:
    old, new = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    return [without(labels, values[0], _changed(old, new), keeps_zeros=True)]


def dynamic_update_slice(labels: Labels, equation: Any, values: Sequence[Value]) -> list[Value]:
    whole, part = values[:2]
    moved = _changed(*(variable.aval.shape for variable in equation.invars[:2]))
    labels.freeze(*(part.axes[axis] for axis in moved))
    kept = without(labels, whole, moved, keeps_zeros=False)
    axes = [
        one if at in moved else labels.unite(one, other)
        for at, (one, other) in enumerate(zip(kept.axes, part.axes, strict=True))
    ]
    return [Value(tuple(axes), kept.is_zero)]


def _changed(old: Sequence[Any], new: Sequence[Any]) -> list[int]:
    return [axis for axis, (a, b) in enumerate(zip(old, new, strict=True)) if a != b]


def gather(labels: Labels, equation: Any, values: Sequence[Value]) -> list[Value]:
    """A look-up, such as of embeddings: axes that are taken as a whole pass."""
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    old = equation.invars[0].aval.shape
    dropped = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    windows = [axis for axis in range(len(old)) if axis not in dropped]
    [output] = [constant(variable.aval) for variable in equation.outvars]
    axes, zeros = list(output.axes), list(output.is_zero)
    for axis, at in zip(windows, numbers.offset_dims, strict=True):
        if sizes[axis] == old[axis] and axis not in numbers.start_index_map:
            axes[at], zeros[at] = values[0].axes[axis], values[0].is_zero[axis]
        else:
            labels.freeze(values[0].axes[axis])
    labels.freeze(*(values[0].axes[axis] for axis in dropped), *values[1].axes)
    return [Value(tuple(axes), tuple(zeros))]


def scatter(labels: Labels, equation: Any, values: Sequence[Value]) -> list[Value]:
    """A write, such as of keys into a cache: axes that are written as a whole pass."""
    numbers = equation.params["dimension_numbers"]
    whole, indices, part = values
    old, new = (equation.invars[at].aval.shape for at in (0, 2))
    dropped = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    windows = [axis for axis in range(len(old)) if axis not in dropped]
    axes = list(whole.axes)
    moved = set(dropped)
    for axis, at in zip(windows, numbers.update_window_dims, strict=True):
        if old[axis] == new[at] and axis not in numbers.scatter_dims_to_operand_dims:
            axes[axis] = labels.unite(axes[axis], part.axes[at])
        else:
            moved.add(axis)
            labels.freeze(part.axes[at])
    others = [axis for at, axis in enumerate(part.axes) if at not in numbers.update_window_dims]
    labels.freeze(*indices.axes, *others)
    passed = Value(tuple(axes), whole.is_zero)
    return [without(labels, passed, sorted(moved), keeps_zeros=False)]
