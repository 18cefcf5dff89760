"""Floating-point operations of a function, counted from its shapes: no device, no compilation.

Counted are products with sums behind them, which is where the work of a network is: a matrix product of
(M, K) and (K, N) is 2 M K N, a convolution is 2 × outputs × kernel elements. A scan's body counts as often as
it runs, a `while` loop's once.

There are two conventions for convolutions. *As published* every kernel element counts for every output, also
where it meets padding; tables in papers, torchvision and timm have it, mostly in multiply-adds (MACs), which
are two FLOPs each. *Without padding* only products with an input element count, as compilers do.
"""

import math
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax

Scope = tuple[str, ...]

INPUTS = "inputs_of_the_model"
PRODUCTS = re.compile(r"products_(\d+)_of_(\d+)")


def count_flops(fn: Callable[..., Any], *args: Any, padding: bool = True) -> int:
    """Returns the FLOPs of `fn(*args)`; the arguments may be arrays or `jax.ShapeDtypeStruct`s.

    Args:
      fn: traced once.
      args: of it.
      padding: whether products with padding count, as in published tables.
    """
    return count_jaxpr_flops(jax.make_jaxpr(fn)(*args).jaxpr, padding=padding)


def count_jaxpr_flops(jaxpr: Any, *, padding: bool = True) -> int:
    """Returns the FLOPs of a traced function, such as `jitted.trace(...).jaxpr`.

    What `input_scope` marks does not count: it is no part of the model.
    """
    counts = count_flops_by_scope(jaxpr, padding=padding)
    return sum(count for scope, count in counts.items() if not any(INPUTS in name for name in scope))


def count_flops_by_scope(jaxpr: Any, outer: Scope = (), *, padding: bool = True) -> Counter[Scope]:
    """Returns the FLOPs of a traced function by `jax.named_scope`; every Linen module is such a scope.

    Args:
      jaxpr: traced, such as `jax.make_jaxpr(fn)(*args)`.
      outer: the scopes that the whole lies in.
      padding: whether products with padding count.
    """
    counts: Counter[Scope] = Counter()
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name = equation.primitive.name
        scope = (*outer, *filter(None, str(equation.source_info.name_stack).split("/")))
        if name == "dot_general":
            counts[scope] += _count_product(equation)
        elif name == "conv_general_dilated":
            counts[scope] += _count_convolution(equation, padding)
        elif name == "mul":
            counts[scope] += _count_marked(equation, scope, padding)
        else:
            branches = [
                count_flops_by_scope(inner, scope, padding=padding)
                for inner in _inner_jaxprs(equation.params)
            ]
            if name == "cond":
                branches = [max(branches, key=Counter.total)]
            times = equation.params["length"] if name == "scan" else 1
            for branch in branches:
                counts.update({inner: times * count for inner, count in branch.items()})
    return counts


def input_scope() -> Any:
    """Returns a scope for what is done to a batch before the model sees it, such as resizing."""
    return jax.named_scope(INPUTS)


def products_scope(num_valid: int, num_products: int) -> Any:
    """Returns a scope whose elementwise products count as those of a convolution written as shifted sums.

    Args:
      num_valid: how many of the products meet an input element.
      num_products: all, those with padding too.
    """
    return jax.named_scope(f"products_{num_valid}_of_{num_products}")


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


def _count_marked(equation: Any, scope: Scope, padding: bool) -> int:
    """Counts the products within a `products_scope`, in the gradient too; there are none elsewhere."""
    marks = [mark for name in scope if (mark := PRODUCTS.search(name))]
    if not marks:
        return 0
    num_valid, num_products = map(int, marks[-1].groups())
    size = int(equation.outvars[0].aval.size)
    return 2 * size if padding else 2 * size * num_valid // num_products


def _count_convolution(equation: Any, padding: bool) -> int:
    """Counts the products of inputs and kernel elements; the zeros of dilation never do work."""
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

    Those that fall between dilated inputs do not count, those that fall outside of them only with `padding`.
    """
    if padding and dilation == 1:
        return outputs * window
    last = math.inf if padding else (size - 1) * dilation
    first = -math.inf if padding else 0
    return sum(
        first <= (place := out * stride + tap * spread - pad) <= last and place % dilation == 0
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
