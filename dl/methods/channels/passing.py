"""What rules share: arrays that cannot be pruned, and axes that pass on."""

from collections.abc import Callable, Sequence
from typing import Any

from dl.methods.channels.labels import Labels, Value

Rule = Callable[[Labels, Any, Sequence[Value]], list[Value]]


def frozen(labels: Labels, equation: Any, values: Sequence[Value]) -> list[Value]:
    """The rule of operations that are not known."""
    for value in values:
        labels.freeze(*value.axes)
    return [constant(variable.aval) for variable in equation.outvars]


def constant(aval: Any) -> Value:
    """Returns an array that cannot be pruned."""
    num_axes = len(getattr(aval, "shape", ()))
    return Value((None,) * num_axes, (False,) * num_axes)


def without(labels: Labels, value: Value, frozen_axes: Sequence[int], *, keeps_zeros: bool) -> Value:
    """Returns the value whose labels pass on all axes but some."""
    labels.freeze(*(value.axes[axis] for axis in frozen_axes))
    axes = tuple(None if axis in frozen_axes else one for axis, one in enumerate(value.axes))
    return Value(axes, value.is_zero if keeps_zeros else (False,) * len(axes))
