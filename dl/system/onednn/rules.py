"""Registers oneDNN's kernels as what JAX makes of convolutions and matrix products on a CPU.

Models keep writing `nn.Conv` and `nn.Dense`; what they compute, their gradients and all transformations of
JAX stay as they are, and only the last step, from an operation of JAX to one of XLA, changes. XLA's own
kernels are used on other backends, in programs of several devices (whose partitioner does not know the
calls), in exported programs, for products with a precision of their own, and for the types and shapes in
which they are faster.
"""

import contextlib
import functools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.interpreters import mlir

from dl.system.onednn import calls, convolution, depthwise, foreign, own_library

_MIN_FLOPS = 2**20  # of a matrix product below which a call costs more than it saves
_MIN_FLOPS_OF_LIBRARY = 2**26  # below, a call through Python costs more than it saves
_FLOATS = (jnp.dtype(jnp.float32),) * 3
_INTEGERS = (jnp.dtype(jnp.int8), jnp.dtype(jnp.int8), jnp.dtype(jnp.int32))  # two factors and their sum
_MIN_SIZE = 8  # rows, columns and length of one


def native_kernels() -> contextlib.AbstractContextManager[None]:
    """Returns a context in which functions are traced that shall use XLA's own kernels.

    It gives products a precision, the usual one, and oneDNN takes only products without one. Precisions
    belong to what JAX traces and caches, so that a function traced inside keeps XLA's kernels wherever it is
    compiled.
    """
    return jax.default_matmul_precision("default")


@functools.cache
def use_onednn() -> None:
    """Lets what is compiled from now on use the forms of this package on CPUs.

    It acts on the whole process, also on programs that do not come from this package. Nothing changes with a
    version of jaxlib in which the package was not tested.
    """
    if not calls.is_tested_version():
        return
    from jax._src.interpreters import mlir as tables  # not public: another version may not have it

    for primitive, rule in ((lax.conv_general_dilated_p, _convolution), (lax.dot_general_p, _product)):
        # JAX has no public way to ask for the rule that is replaced.
        specific, common = tables._platform_specific_lowerings["cpu"], tables._lowerings
        native = (specific.get(primitive) or common[primitive]).rule
        mlir.register_lowering(primitive, functools.partial(rule, native), platform="cpu")
    foreign.guard_interrupts()
    # XLA cannot write a program with calls of jaxlib's oneDNN to the persistent cache, and JAX warns of each.
    warnings.filterwarnings("ignore", "Error writing persistent compilation cache entry.*bad_alloc")


def _convolution(native: Any, ctx: Any, inputs: Any, kernel: Any, **params: Any) -> Any:
    form = _form_of_convolution(ctx, **params)
    if form is None:
        return native(ctx, inputs, kernel, **params)
    return mlir.lower_fun(form, multiple_results=False)(ctx, inputs, kernel)


def _form_of_convolution(
    ctx: Any,
    *,
    dimension_numbers: Any,
    window_strides: Sequence[int],
    padding: convolution.Padding,
    lhs_dilation: Sequence[int],
    rhs_dilation: Sequence[int],
    feature_group_count: int,
    batch_group_count: int,
    precision: Any,
    **others: Any,
) -> Callable[[jax.Array, jax.Array], jax.Array] | None:
    """Returns a function that computes a convolution faster than XLA's own kernel, or `None`."""
    inputs, kernel = ctx.avals_in
    (outputs,) = ctx.avals_out
    is_suited, is_integer = _is_suited(ctx, precision), inputs.dtype == jnp.int8
    if not 3 <= inputs.ndim <= 5 or not _is_static(ctx) or 0 in (*inputs.shape, *outputs.shape):
        return None
    if set(lhs_dilation) == {1} and any(low < 0 or high < 0 for low, high in padding):
        return functools.partial(
            convolution.of_cropped,
            padding=padding,
            window_strides=window_strides,
            rhs_dilation=rhs_dilation,
            dimension_numbers=dimension_numbers,
            feature_group_count=feature_group_count,
            batch_group_count=batch_group_count,
            precision=precision,
            **others,
        )
    if is_integer and (feature_group_count > 1 or set(lhs_dilation) != {1}):
        return None
    if is_suited and not is_integer:
        form = own_library.of_convolution(
            *(inputs, kernel, outputs),
            dimension_numbers=dimension_numbers,
            window_strides=window_strides,
            padding=padding,
            lhs_dilation=lhs_dilation,
            rhs_dilation=rhs_dilation,
            feature_group_count=feature_group_count,
            batch_group_count=batch_group_count,
        )
        if form is not None:
            ctx.module_context.keepalives.append(foreign.TARGET)
            return form
    if not is_integer and convolution.is_kernel_gradient(dimension_numbers) and set(lhs_dilation) == {1}:
        window, channels = outputs.shape[:-2], outputs.shape[-2]
        # The strides of the layer dilate the gradient of its output, which is the kernel here.
        options = {"window": window, "strides": rhs_dilation, "padding": padding, "dilation": window_strides}
        if batch_group_count == 1 == feature_group_count:
            is_faster = is_suited and convolution.is_faster_as_product(window, channels)
            return functools.partial(convolution.kernel_gradient, **options) if is_faster else None
        if feature_group_count == 1 and inputs.shape[-1] == batch_group_count == outputs.shape[-1]:
            gradient = depthwise.kernel_gradient_by_convolution if is_suited else depthwise.kernel_gradient
            return functools.partial(gradient, **options)
        return None
    if not convolution.is_channels_last(dimension_numbers) or batch_group_count != 1:
        return None
    if is_suited and set(lhs_dilation) != {1} and set(window_strides) == {1} == set(rhs_dilation):
        return functools.partial(
            convolution.without_zeros,
            spacing=lhs_dilation,
            padding=padding,
            dimension_numbers=dimension_numbers,
            groups=feature_group_count,
        )
    if is_suited and set(lhs_dilation) == {1}:
        return functools.partial(
            calls.convolution_p.bind,
            sizes=outputs.shape[1:-1],
            dimension_numbers=dimension_numbers,
            strides=tuple(window_strides),
            padding=tuple(map(tuple, padding)),
            dilation=tuple(rhs_dilation),
            groups=feature_group_count,
        )
    kernel_spec = dimension_numbers.rhs_spec
    if depthwise.is_depthwise(inputs, kernel, kernel_spec, feature_group_count):
        return functools.partial(
            depthwise.shifted_sum,
            sizes=outputs.shape[1:-1],
            strides=window_strides,
            padding=padding,
            spacing=lhs_dilation,
            dilation=rhs_dilation,
            kernel_spec=kernel_spec,
        )
    return None


def _product(native: Any, ctx: Any, left: Any, right: Any, **params: Any) -> Any:
    form = _form_of_product(ctx, **params)
    if form is None:
        return native(ctx, left, right, **params)
    return mlir.lower_fun(form, multiple_results=False)(ctx, left, right)


def _form_of_product(
    ctx: Any, *, dimension_numbers: Any, precision: Any, **_: Any
) -> Callable[[jax.Array, jax.Array], jax.Array] | None:
    """Returns a function that computes a product of matrices faster than XLA's own kernel, or `None`."""
    (left_axes, right_axes), batch_axes = dimension_numbers
    left, right = ctx.avals_in
    shape = ctx.avals_out[0].shape
    if any(batch_axes) or not _is_suited(ctx, precision):
        return None
    is_left_transposed = _is_transposed(left.ndim, left_axes, is_first=True)
    is_right_transposed = _is_transposed(right.ndim, right_axes, is_first=False)
    if is_left_transposed is None or is_right_transposed is None:
        return None
    length = math.prod(left.shape[axis] for axis in left_axes)
    num_flops = 2 * math.prod(shape) * length
    if num_flops < _MIN_FLOPS:
        return None
    # After the first call of oneDNN's own library all calls of a program are its, so that it can be stored.
    has_library = num_flops >= _MIN_FLOPS_OF_LIBRARY or foreign.TARGET in ctx.module_context.keepalives
    if min(length, left.size // length, right.size // length) < _MIN_SIZE:
        return None

    def multiply(left: jax.Array, right: jax.Array, *is_transposed: bool) -> jax.Array:
        is_called = has_library and left.dtype == jnp.float32
        form = own_library.of_product(left.shape, right.shape, is_transposed) if is_called else None
        names = ("is_left_transposed", "is_right_transposed")
        options = dict(zip(names, is_transposed, strict=True))
        if form is None:
            return calls.product_p.bind(left, right, **options)
        ctx.module_context.keepalives.append(foreign.TARGET)
        return form(left, right)

    def product(left: jax.Array, right: jax.Array) -> jax.Array:
        left = left.reshape((length, -1) if is_left_transposed else (-1, length))
        right = right.reshape((-1, length) if is_right_transposed else (length, -1))
        if is_left_transposed and not is_right_transposed:
            # JAX writes the gradient of a kernel as the transpose of such a product. Two transposes cancel.
            made = multiply(right, left, True, False).T
        else:
            made = multiply(left, right, is_left_transposed, is_right_transposed)
        return made.reshape(shape)

    return product


def _is_transposed(num_dims: int, axes: Sequence[int], *, is_first: bool) -> bool | None:
    """Returns whether a factor is a transposed matrix, or `None` if its axes do not make a matrix."""
    if not 0 < len(axes) < num_dims:
        return None
    if tuple(axes) == tuple(range(len(axes))):
        return is_first
    if tuple(axes) == tuple(range(num_dims - len(axes), num_dims)):
        return not is_first
    return None


def _is_suited(ctx: Any, precision: Any) -> bool:
    """Returns whether oneDNN can be called: types, one device, a program that is not exported."""
    types = tuple(aval.dtype for aval in (*ctx.avals_in, *ctx.avals_out))
    module = ctx.module_context
    return (
        calls.is_available()
        and precision is None
        and getattr(module.axis_context, "num_devices", None) == 1
        and not module.lowering_parameters.for_export
        and (types == _FLOATS or (types == _INTEGERS and calls.has_integer_products()))
        and _is_static(ctx)
    )


def _is_static(ctx: Any) -> bool:
    """Returns whether all sizes are known, which those of an exported program need not be."""
    return all(isinstance(size, int) for aval in (*ctx.avals_in, *ctx.avals_out) for size in aval.shape)
