"""Floating-point operations (FLOPs) of a function, counted from its shapes without a device or a compilation.

Only matrix products and convolutions are counted, because they are nearly all the work of a network. A matrix
product of (M, K) and (K, N) is 2 M K N FLOPs. A convolution is 2 × outputs × kernel elements. The body of a
scan counts once for each iteration. The body of a `while` loop counts once.

There are two conventions for convolutions. *As published*, every kernel element counts for every output, even
where it meets padding. Papers, torchvision and timm use this convention, mostly in multiply-adds (MACs),
which are two FLOPs each. *Without padding*, only products with an input element count, as in compilers.
"""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax

Scope = tuple[str, ...]

INPUTS = "inputs_of_the_model"


def count_flops(fn: Callable[..., Any], *args: Any, padding: bool = True) -> int:
    """Returns the FLOPs of `fn(*args)`; the arguments may be arrays or `jax.ShapeDtypeStruct`s.

    Args:
      fn: the function, which is traced once.
      args: the arguments of the function.
      padding: whether products with padding count, as in published tables.
    """
    return count_jaxpr_flops(jax.make_jaxpr(fn)(*args).jaxpr, padding=padding)


def count_jaxpr_flops(jaxpr: Any, *, padding: bool = True) -> int:
    """Returns the FLOPs of a traced function, such as `jitted.trace(...).jaxpr`.

    Operations within `input_scope` do not count, because they are not a part of the model.
    """
    counts = count_flops_by_scope(jaxpr, padding=padding)
    return sum(count for scope, count in counts.items() if not any(INPUTS in name for name in scope))


def count_flops_by_scope(jaxpr: Any, outer: Scope = (), *, padding: bool = True) -> Counter[Scope]:
    """Returns the FLOPs of a traced function by `jax.named_scope`; every Linen module is such a scope.

    Args:
      jaxpr: the traced function, such as `jax.make_jaxpr(fn)(*args)`.
      outer: the scopes that contain the whole function.
      padding: whether products with padding count.
    """
    counts: Counter[Scope] = Counter()
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name = equation.primitive.name
        scope = (*outer, *filter(None, str(equation.source_info.name_stack).split("/")))
        if name in ("dot_general", "conv_general_dilated"):
            counts[scope] += count_equation_flops(equation, padding=padding)
        else:
            branches = [
                count_flops_by_scope(inner, scope, padding=padding) for inner in inner_jaxprs(equation.params)
            ]
            if name == "cond":
                branches = [max(branches, key=Counter.total)]
            times = equation.params["length"] if name == "scan" else 1
            for branch in branches:
                counts.update({inner: times * count for inner, count in branch.items()})
    return counts


def count_equation_flops(equation: Any, *, padding: bool = True) -> int:
    """Returns the FLOPs of one operation; 0 unless it is a matrix product or a convolution."""
    if equation.primitive.name == "dot_general":
        return _count_product(equation)
    is_convolution = equation.primitive.name == "conv_general_dilated"
    return _count_convolution(equation, padding) if is_convolution else 0


def input_scope() -> Any:
    """Returns a scope for the operations on a batch before the model reads it, such as resizing."""
    return jax.named_scope(INPUTS)


def has_convolution(jaxpr: Any) -> bool:
    """Returns whether a traced function contains a convolution."""
    return any(
        equation.primitive.name == "conv_general_dilated"
        or any(has_convolution(inner) for inner in inner_jaxprs(equation.params))
        for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns
    )


def product_dtype(jaxpr: Any) -> str:
    """Returns the dtype of the operands of most FLOPs of a traced function, such as `bfloat16`."""
    counts = _count_by_dtype(jaxpr)
    return max(counts, key=counts.__getitem__, default="float32")


def _count_by_dtype(jaxpr: Any) -> Counter[str]:
    counts: Counter[str] = Counter()
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            count = count_equation_flops(equation)
            counts[str(min((v.aval.dtype for v in equation.invars[:2]), key=lambda d: d.itemsize))] += count
        for inner in inner_jaxprs(equation.params):
            counts.update({dtype: times * count for dtype, count in _count_by_dtype(inner).items()})
    return counts


def _count_product(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return 2 * equation.outvars[0].aval.size * math.prod(shape[dim] for dim in contracted)


def _count_convolution(equation: Any, padding: bool) -> int:
    """Counts the products of inputs and kernel elements. The zeros of a dilated input never count."""
    params = equation.params
    numbers = params["dimension_numbers"]
    inputs, kernel, outputs = (v.aval.shape for v in (*equation.invars[:2], equation.outvars[0]))
    taps = 1
    for axis, pads in enumerate(params["padding"]):
        taps *= _num_taps(
            inputs[numbers.lhs_spec[2 + axis]],
            kernel[numbers.rhs_spec[2 + axis]],
            outputs[numbers.out_spec[2 + axis]],
            params["window_strides"][axis],
            pads[0],
            params["lhs_dilation"][axis],
            params["rhs_dilation"][axis],
            padding,
        )
    batch, channels_out = outputs[numbers.out_spec[0]], outputs[numbers.out_spec[1]]
    channels_in = kernel[numbers.rhs_spec[1]]  # of one group
    return 2 * batch * channels_out * channels_in * taps


def _num_taps(
    size: int, window: int, outputs: int, stride: int, pad: int, dilation: int, spread: int, padding: bool
) -> int:
    """Counts pairs of an output and a kernel element on one axis.

    Pairs that meet a zero between dilated inputs do not count. Pairs outside the input count only if
    `padding` is set.
    """
    if padding and dilation == 1:
        return outputs * window
    last = math.inf if padding else (size - 1) * dilation
    first = -math.inf if padding else 0
    return sum(
        first <= (position := out * stride + tap * spread - pad) <= last and position % dilation == 0
        for out in range(outputs)
        for tap in range(window)
    )


def inner_jaxprs(params: dict[str, Any]) -> list[Any]:
    """Returns the traced functions that an operation with these parameters calls."""
    found = []
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            item = getattr(item, "jaxpr", item)
            if hasattr(item, "eqns"):
                found.append(item)
    return found
