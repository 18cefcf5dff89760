"""How each operation passes the labels of channels on: rules for everything but products and calls.

A rule gets the labels, the equation and the operands, and returns the outputs. An operation without a rule
cannot be pruned: the axes of its operands and outputs are frozen.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dl.methods.channels.indexing import dynamic_slice, dynamic_update_slice, gather, scatter
from dl.methods.channels.labels import Axis, Labels, Value
from dl.methods.channels.passing import Rule, frozen, without

_ZERO_AT_ZERO = {
    "abs", "asin", "asinh", "atan", "atanh", "cbrt", "ceil", "convert_element_type", "copy", "copy_p", "erf",
    "expm1", "floor", "imag", "integer_pow", "log1p", "name", "neg", "real", "reduce_precision", "round",
    "sharding_constraint", "sign", "sin", "sinh", "sqrt", "square", "stop_gradient", "tan", "tanh",
}  # fmt: skip
_UNARY = _ZERO_AT_ZERO | {
    "acos", "acosh", "bitcast_convert_type", "cos", "cosh", "digamma", "erf_inv", "erfc", "exp", "exp2",
    "is_finite", "lgamma", "log", "logistic", "not", "population_count", "rsqrt",
}  # fmt: skip
_PRODUCTS = {"and", "mul"}  # 0 if one operand is
_SUMS = {"add", "add_any", "max", "min", "ne", "or", "sub", "xor"}  # 0 if all operands are
_QUOTIENTS = {"div", "rem", "shift_left", "shift_right_arithmetic", "shift_right_logical"}  # if the first is
_BINARY = _PRODUCTS | _SUMS | _QUOTIENTS | {"atan2", "eq", "ge", "gt", "le", "lt", "nextafter", "pow"}
_MAGNITUDES = {"abs", "square"}
_REDUCTIONS = {
    "argmax", "argmin", "reduce_and", "reduce_max", "reduce_min", "reduce_or", "reduce_prod", "reduce_sum",
}  # fmt: skip
_CUMULATIVE = {"cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum"}
_WINDOWS = {"reduce_window_max", "reduce_window_min", "reduce_window_sum"}


def rule_of(name: str) -> Rule | None:
    """Returns the rule of an operation that is not a product or a call; None if there is no rule."""
    if name in _UNARY or name in _BINARY or name in ("select_n", "clamp"):
        return elementwise
    if name in _REDUCTIONS:
        return _reduce
    if name in _CUMULATIVE:
        return _cumulate
    if name in _WINDOWS:
        return _reduce_window
    return _OTHERS.get(name)


def elementwise(labels: Labels, equation: Any, values: Sequence[Value]) -> list[Value]:
    """Operands of the same shape, scalars, and operands in which an axis of size 1 is repeated."""
    shape = equation.outvars[0].aval.shape
    shapes = [variable.aval.shape for variable in equation.invars]
    if any(old and len(old) != len(shape) for old in shapes):
        return frozen(labels, equation, values)
    numbers = [_number(variable) for variable in equation.invars]
    axes: list[Axis] = []
    zeros = []
    for at, size in enumerate(shape):
        parts = []
        are_zero = [number == 0 for number in numbers]
        for operand, (value, old) in enumerate(zip(values, shapes, strict=True)):
            if old and old[at] == size:
                parts.append(value.axes[at])
                are_zero[operand] = value.is_zero[at]
            elif old:
                labels.freeze(value.axes[at])
        axis = parts[0]
        for part in parts[1:]:
            axis = labels.unite(axis, part)
        axes.append(axis)
        zeros.append(_is_zero(equation.primitive.name, are_zero, numbers))
    return [Value(tuple(axes), tuple(zeros), equation.primitive.name in _MAGNITUDES)]


def _is_zero(name: str, are_zero: Sequence[bool], numbers: Sequence[float | None]) -> bool:
    """Returns whether the output is 0 where the stated operands are; False if that is not known."""
    if name in _ZERO_AT_ZERO or name in _QUOTIENTS:
        return are_zero[0]
    if name in ("max", "min"):
        beyond = np.less_equal if name == "max" else np.greater_equal  # such as min(x, 6)
        return all(
            zero or (n is not None and beyond(n, 0)) for zero, n in zip(are_zero, numbers, strict=True)
        )
    if name == "clamp":
        low, _, high = numbers
        return are_zero[1] and low is not None and high is not None and low <= 0 <= high
    if name == "select_n":
        return all(are_zero[1:])
    return any(are_zero) if name in _PRODUCTS else name in _SUMS and all(are_zero)


def _number(variable: Any) -> float | None:
    """Returns the number of a scalar that is written in the program."""
    value: Any = getattr(variable, "val", None)
    is_number = value is not None and np.ndim(value) == 0 and np.issubdtype(variable.aval.dtype, np.number)
    return float(value) if is_number else None


def _broadcast(labels: Labels, equation: Any, values: Sequence[Value]) -> list[Value]:
    shape, dims = equation.params["shape"], equation.params["broadcast_dimensions"]
    old = equation.invars[0].aval.shape
    is_zero = not old and _number(equation.invars[0]) == 0
    axes = [labels.fresh(size) for size in shape]
    zeros = [is_zero] * len(shape)
    for axis, at in enumerate(dims):
        if old[axis] == shape[at]:
            axes[at], zeros[at] = values[0].axes[axis], values[0].is_zero[axis]
        else:
            labels.freeze(values[0].axes[axis])
    return [Value(tuple(axes), tuple(zeros))]


def _reshape(labels: Labels, equation: Any, values: Sequence[Value]) -> list[Value]:
    return [labels.reshaped(values[0], equation.invars[0].aval.shape, equation.outvars[0].aval.shape)]


def _transpose(labels: Labels, equation: Any, values: Sequence[Value]) -> list[Value]:
    return [_picked(values[0], equation.params["permutation"])]


def _squeeze(labels: Labels, equation: Any, values: Sequence[Value]) -> list[Value]:
    dropped = equation.params["dimensions"]
    labels.freeze(*(values[0].axes[axis] for axis in dropped))
    return [_picked(values[0], [axis for axis in range(len(values[0].axes)) if axis not in dropped])]


def _picked(value: Value, order: Sequence[int]) -> Value:
    return Value(tuple(value.axes[at] for at in order), tuple(value.is_zero[at] for at in order))


def _reduce(labels: Labels, equation: Any, values: Sequence[Value]) -> list[Value]:
    reduced, name = equation.params["axes"], equation.primitive.name
    # A sum has the same value with zeros as without them, and so has the largest magnitude.
    ignores_zeros = name == "reduce_sum" or (name == "reduce_max" and values[0].is_magnitude)
    for axis in reduced:
        if not (ignores_zeros and values[0].is_zero[axis]):
            labels.freeze(values[0].axes[axis])
    return [_picked(values[0], [axis for axis in range(len(values[0].axes)) if axis not in reduced])]


def _cumulate(labels: Labels, equation: Any, values: Sequence[Value]) -> list[Value]:
    return [without(labels, values[0], [equation.params["axis"]], keeps_zeros=False)]


def _reduce_window(labels: Labels, equation: Any, values: Sequence[Value]) -> list[Value]:
    params = equation.params
    names = ("window_dimensions", "window_strides", "base_dilation", "window_dilation")
    moved = [
        axis
        for axis, pads in enumerate(params["padding"])
        if any(params[name][axis] != 1 for name in names) or tuple(pads) != (0, 0)
    ]
    return [without(labels, values[0], moved, keeps_zeros=True)]


def _concatenate(labels: Labels, equation: Any, values: Sequence[Value]) -> list[Value]:
    joined = equation.params["dimension"]
    axes, zeros = [], []
    for axis in range(len(values[0].axes)):
        parts = [value.axes[axis] for value in values]
        zeros.append(all(value.is_zero[axis] for value in values))
        if axis == joined:
            sizes = [variable.aval.shape[axis] for variable in equation.invars]
            axes.append(_joined(labels, parts, sizes))
            continue
        whole = parts[0]
        for part in parts[1:]:
            whole = labels.unite(whole, part)
        axes.append(whole)
    return [Value(tuple(axes), tuple(zeros))]


def _joined(labels: Labels, parts: Sequence[Any], sizes: Sequence[Any]) -> Any:
    if not all(isinstance(size, int | np.integer) for size in sizes):
        labels.freeze(*parts)
        return None
    zeros = [
        np.zeros(size, np.int64) if part is None else part for part, size in zip(parts, sizes, strict=True)
    ]
    return np.concatenate(zeros)


def _pad(labels: Labels, equation: Any, values: Sequence[Value]) -> list[Value]:
    axes, zeros = [], []
    is_zero = _number(equation.invars[1]) == 0
    config = equation.params["padding_config"]
    for axis, zero, (low, high, interior) in zip(values[0].axes, values[0].is_zero, config, strict=True):
        if axis is None or (low, high, interior) == (0, 0, 0):
            axes.append(axis)
        elif interior or low < 0 or high < 0:
            labels.freeze(axis)
            axes.append(None)
        else:
            axes.append(np.concatenate([labels.fresh(low), axis, labels.fresh(high)]))
        zeros.append(zero and is_zero)
    return [Value(tuple(axes), tuple(zeros))]


def _slice(labels: Labels, equation: Any, values: Sequence[Value]) -> list[Value]:
    params = equation.params
    strides = params["strides"] or (1,) * len(values[0].axes)
    axes = [
        None if axis is None else axis[start:limit:stride]
        for axis, start, limit, stride in zip(
            values[0].axes, params["start_indices"], params["limit_indices"], strides, strict=True
        )
    ]
    return [Value(tuple(axes), values[0].is_zero)]


def _split(labels: Labels, equation: Any, values: Sequence[Value]) -> list[Value]:
    at, ends = equation.params["axis"], np.cumsum(equation.params["sizes"])
    outputs = []
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        axes = list(values[0].axes)
        whole = axes[at]
        axes[at] = None if whole is None else whole[start:end]
        outputs.append(Value(tuple(axes), values[0].is_zero))
    return outputs


def _reverse(labels: Labels, equation: Any, values: Sequence[Value]) -> list[Value]:
    dims = equation.params["dimensions"]
    axes = [axis[::-1] if axis is not None and at in dims else axis for at, axis in enumerate(values[0].axes)]
    return [Value(tuple(axes), values[0].is_zero)]


def _fresh(labels: Labels, equation: Any, values: Sequence[Value]) -> list[Value]:
    """Numbers that fit any channels, such as random ones."""
    shape = equation.outvars[0].aval.shape
    return [Value(tuple(labels.fresh(size) for size in shape), (False,) * len(shape))]


def _random_bits(labels: Labels, equation: Any, values: Sequence[Value]) -> list[Value]:
    frozen(labels, equation, values)
    num_keys = len(equation.invars[0].aval.shape)
    [made] = _fresh(labels, equation, values)
    return [Value((*(None,) * num_keys, *made.axes[num_keys:]), made.is_zero)]


_OTHERS: dict[str, Rule] = {
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "dynamic_slice": dynamic_slice,
    "dynamic_update_slice": dynamic_update_slice,
    "gather": gather,
    "iota": _fresh,
    "pad": _pad,
    "random_bits": _random_bits,
    "reshape": _reshape,
    "rev": _reverse,
    "scatter": scatter,
    "scatter-add": scatter,
    "slice": _slice,
    "split": _split,
    "squeeze": _squeeze,
    "transpose": _transpose,
}
