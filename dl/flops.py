"""Floating-point operations of a function, counted from its shapes: no device, no compilation.

Counted are products with sums behind them, which is where the work of a network is: a matrix product of
(M, K) and (K, N) is 2 M K N, a convolution is 2 × outputs × kernel elements that each output sees. A loop's
body counts as often as it runs.
"""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax

Scope = tuple[str, ...]


def count_flops(fn: Callable[..., Any], *args: Any) -> int:
    """Returns the FLOPs of `fn(*args)`; the arguments may be arrays or `jax.ShapeDtypeStruct`s."""
    return count_jaxpr_flops(jax.make_jaxpr(fn)(*args).jaxpr)


def count_jaxpr_flops(jaxpr: Any) -> int:
    """Returns the FLOPs of a traced function, such as `jitted.trace(...).jaxpr`."""
    return sum(count_flops_by_scope(jaxpr).values())


def count_flops_by_scope(jaxpr: Any, outer: Scope = ()) -> Counter[Scope]:
    """Returns the FLOPs of a traced function by `jax.named_scope`; every Linen module is such a scope.

    Args:
      jaxpr: traced, such as `jax.make_jaxpr(fn)(*args)`.
      outer: the scopes that the whole lies in.
    """
    counts: Counter[Scope] = Counter()
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name = equation.primitive.name
        scope = (*outer, *filter(None, str(equation.source_info.name_stack).split("/")))
        if name == "dot_general":
            counts[scope] += _count_product(equation)
        elif name == "conv_general_dilated":
            counts[scope] += _count_convolution(equation)
        else:
            branches = [count_flops_by_scope(inner, scope) for inner in _inner_jaxprs(equation.params)]
            if name == "cond":
                branches = [max(branches, key=Counter.total)]
            times = equation.params["length"] if name == "scan" else 1
            for branch in branches:
                counts.update({inner: times * count for inner, count in branch.items()})
    return counts


def has_convolution(jaxpr: Any) -> bool:
    """Says whether a traced function convolves, anywhere in it."""
    return any(
        equation.primitive.name == "conv_general_dilated"
        or any(has_convolution(inner) for inner in _inner_jaxprs(equation.params))
        for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns
    )


def _count_product(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return 2 * equation.outvars[0].aval.size * math.prod(shape[dim] for dim in contracted)


def _count_convolution(equation: Any) -> int:
    """Counts the taps that meet an input element: neither padding nor the zeros of dilation do work."""
    params = equation.params
    numbers = params["dimension_numbers"]
    inputs, kernel, outputs = (v.aval.shape for v in (*equation.invars[:2], equation.outvars[0]))
    taps = 1
    for axis, padding in enumerate(params["padding"]):
        taps *= _num_taps(
            inputs[numbers.lhs_spec[2 + axis]],
            kernel[numbers.rhs_spec[2 + axis]],
            outputs[numbers.out_spec[2 + axis]],
            params["window_strides"][axis],
            padding[0],
            params["lhs_dilation"][axis],
            params["rhs_dilation"][axis],
        )
    batch, channels_out = outputs[numbers.out_spec[0]], outputs[numbers.out_spec[1]]
    channels_in = kernel[numbers.rhs_spec[1]]  # of one group
    return 2 * batch * channels_out * channels_in * taps


def _num_taps(size: int, window: int, outputs: int, stride: int, pad: int, dilation: int, spread: int) -> int:
    """Counts pairs of an output and a kernel element whose input element exists, on one axis."""
    last = (size - 1) * dilation
    return sum(
        0 <= (place := out * stride + tap * spread - pad) <= last and place % dilation == 0
        for out in range(outputs)
        for tap in range(window)
    )


def _inner_jaxprs(params: dict[str, Any]) -> list[Any]:
    found = []
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            item = getattr(item, "jaxpr", item)
            if hasattr(item, "eqns"):
                found.append(item)
    return found
