"""What quantised layers compute: products of integers, or in training the same numbers as floats.

A dense layer or a convolution with int8 inputs q_x, int8 weights q_w and the scales s_x, s_w computes

    y = (s_x · s_w) · Σ q_x q_w + b,

where the sum is an int32 and exact (Jacob et al. 2018, equation 4). A batch norm that directly follows it is
folded into the product and the bias of the same sum:

    BN(y) = (s_x · s_w · k) · Σ q_x q_w + (b - mean) · k + β,    k = γ / √(variance + ε).

Both contexts of this module intercept the layers of any Linen model. In `computing_integers` a
model reads the integers of its variables, or rounds float ones first. In `simulating` it computes s_x q_x
and s_w q_w as floats, with a gradient.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dl.methods.quantization.integers import INPUT_BITS, scale_of, straight_through, to_integers
from dl.methods.quantization.weights import (
    EMBEDDING,
    INPUT_SCALE,
    KERNEL,
    dequantized,
    name_of_scale,
    quantized,
    unpacked,
)

DYNAMIC, FLOAT = "dynamic", "float"
"""How the inputs of a layer are rounded if not with a fixed scale: with one of their own, or not at all."""

Layers = Mapping[str, float | str]


class Weights(NamedTuple):
    """The integers and scales of a layer, and how its inputs are rounded."""

    integers: jax.Array
    scale: jax.Array
    inputs: Any


class Sum(NamedTuple):
    """An output of a layer, and the sum and the factors that it was made of, for a batch norm to fold."""

    outputs: jax.Array
    sums: jax.Array
    factor: jax.Array
    bias: Any


def can_be_quantized(module: nn.Module) -> bool:
    """Returns whether a module is a layer with weights that are stored as integers."""
    if type(module) is nn.DenseGeneral:
        return not module.batch_dims
    if type(module) is nn.Conv:
        return module.mask is None
    return type(module) in (nn.Dense, nn.Embed)


def name_of(module: nn.Module) -> str:
    """Returns the name of the weights of a layer."""
    return EMBEDDING if type(module) is nn.Embed else KERNEL


def path_of(module: nn.Module) -> str:
    """Returns the path of a module in the tree of parameters."""
    return "/".join(module.path)


def scale_axes(module: nn.Module, ndim: int) -> tuple[int, ...]:
    """Returns the axes of the inputs that share a dynamic scale, and never the axis of the examples.

    Each row of a dense layer has its own scale, and each example of a convolution. So the outputs for an
    example do not depend on the other ones.
    """
    if isinstance(module, nn.Conv):
        return tuple(range(ndim - np.size(module.kernel_size) - 1, ndim))
    if isinstance(module, nn.DenseGeneral):
        axes = (module.axis,) if isinstance(module.axis, int) else module.axis
        return tuple(sorted(axis % ndim for axis in axes))
    return (ndim - 1,)


@contextlib.contextmanager
def computing_integers(layers: Layers, bits: int) -> Iterator[None]:
    """Returns a context in which the layers with these paths compute with integers."""
    sums: dict[int, Sum] = {}

    def compute(module: nn.Module, method: str, inputs: jax.Array) -> Any:
        weights = _weights_of(module, layers[path_of(module)], bits)
        if isinstance(module, nn.Embed):
            return (
                _attend(module, weights, inputs) if method == "attend" else _look_up(module, weights, inputs)
            )
        if weights.inputs == FLOAT:
            kernel = dequantized(weights.integers, weights.scale, KERNEL)
            return _apply(module, {KERNEL: kernel}, inputs)
        made = _product(module, weights, inputs)
        sums[id(made.outputs)] = made  # which keeps the outputs alive, so that no other array has their id
        return made.outputs

    def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module: Any = context.module
        if type(module) is nn.Embed and context.method_name == "setup" and path_of(module) in layers:
            weights = _weights_of(module, FLOAT, bits, setting_up=True)
            module.embedding = dequantized(weights.integers, weights.scale, EMBEDDING)
            return None
        if type(module) is nn.BatchNorm and context.method_name == "__call__" and args:
            made = sums.get(id(args[0]))
            if made is not None and _is_fixed_norm(module, args[1:], kwargs):
                return _folded(module, made)
        return call(*args, **kwargs)

    with nn.intercept_methods(intercept), _intercepting(layers, compute):
        yield


@contextlib.contextmanager
def simulating(layers: Layers, bits: int) -> Iterator[None]:
    """Returns a context in which the layers with these paths round float weights and inputs as integers are.

    Gradients pass straight through the rounding.
    """

    def compute(module: nn.Module, method: str, inputs: jax.Array) -> Any:
        name = name_of(module)
        rule: Any = layers[path_of(module)]
        weights: Any = module.get_variable("params", name)
        axes = (1,) if name == EMBEDDING else tuple(range(weights.ndim - 1))
        weights = straight_through(weights, scale_of(weights, axes, bits), bits)
        if rule != FLOAT and jnp.issubdtype(inputs.dtype, jnp.floating):
            scale = scale_of(inputs, scale_axes(module, inputs.ndim), INPUT_BITS) if rule == DYNAMIC else rule
            inputs = straight_through(inputs, scale, INPUT_BITS)
        return _apply(module, {name: weights}, inputs, method)

    with _intercepting(layers, compute):
        yield


@contextlib.contextmanager
def _intercepting(layers: Layers, compute: Callable[..., Any]) -> Iterator[None]:
    """Returns a context in which `compute(module, method, inputs)` computes the layers."""
    is_inside = False  # the layers that `compute` makes itself stay as they are

    def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        nonlocal is_inside
        module, method = context.module, context.method_name
        is_layer = not is_inside and method in ("__call__", "attend") and can_be_quantized(module)
        if not is_layer or path_of(module) not in layers or module.is_initializing():
            return call(*args, **kwargs)
        inputs = args[0] if args else next(iter(kwargs.values()))
        is_inside = True
        try:
            return compute(module, method, jnp.asarray(inputs))
        finally:
            is_inside = False

    with nn.intercept_methods(intercept):
        yield


def _weights_of(module: Any, rule: float | str, bits: int, setting_up: bool = False) -> Weights:
    name = name_of(module)
    read: Any = module.scope.get_variable if setting_up else module.get_variable
    has: Any = module.scope.has_variable if setting_up else module.has_variable
    stored = read("params", name)
    if not has("params", name_of_scale(name)):
        integers, scale = quantized(stored, name, bits)
        return Weights(integers, scale, rule)
    size = module.features if isinstance(module.features, int) else module.features[-1]
    integers, scale = unpacked(stored, size), read("params", name_of_scale(name))
    return Weights(integers, scale, read("params", INPUT_SCALE) if has("params", INPUT_SCALE) else rule)


def _apply(
    module: Any, params: dict[str, Any], inputs: jax.Array, method: str = "__call__", **options: Any
) -> Any:
    """Returns what the layer computes from these weights, its own bias, and fields of the module changed."""
    if getattr(module, "use_bias", False):
        params = params | {"bias": module.get_variable("params", "bias")}
    return module.clone(parent=None, name=None, **options).apply({"params": params}, inputs, method=method)


def _rounded_inputs(inputs: jax.Array, rule: Any, axes: Any) -> tuple[jax.Array, jax.Array]:
    """Returns int8 inputs, and their scale with as many axes as they have, or none if it is fixed."""
    if isinstance(rule, str):
        scale = scale_of(inputs, axes, INPUT_BITS)
    else:
        scale = jnp.asarray(rule, jnp.float32)
    return to_integers(inputs, scale, INPUT_BITS), scale


def _product(module: Any, weights: Weights, inputs: jax.Array) -> Sum:
    """Returns the outputs of a dense layer or a convolution, computed as a product of integers."""
    parts: list[Any] = []
    integers, rule = weights.integers, weights.inputs

    def scaled(sums: jax.Array, scale: jax.Array, dtype: Any) -> jax.Array:
        factor = scale * weights.scale.astype(jnp.float32).reshape((1,) * (sums.ndim - 1) + (-1,))
        parts.extend((sums, factor))
        return (sums.astype(jnp.float32) * factor).astype(dtype)

    def dot(left: jax.Array, _: Any, dimension_numbers: Any, *args: Any, **kwargs: Any) -> jax.Array:
        axes = dimension_numbers[0][0]
        left_integers, scale = _rounded_inputs(left, rule, axes)
        sums = lax.dot_general(left_integers, integers, dimension_numbers, preferred_element_type=jnp.int32)
        if scale.ndim:
            kept = scale.squeeze(axes)
            scale = kept.reshape(*kept.shape, *(1,) * (sums.ndim - kept.ndim))
        return scaled(sums, scale, left.dtype)

    def convolve(left: jax.Array, _: Any, *args: Any, **kwargs: Any) -> jax.Array:
        left_integers, scale = _rounded_inputs(left, rule, tuple(range(1, left.ndim)))
        kwargs = {**kwargs, "precision": None, "preferred_element_type": jnp.int32}
        return scaled(lax.conv_general_dilated(left_integers, integers, *args, **kwargs), scale, left.dtype)

    field = {"conv_general_dilated": convolve} if isinstance(module, nn.Conv) else {"dot_general": dot}
    # The layer checks the shape of a kernel and converts its dtype, and the product does not read it.
    outputs = _apply(module, {KERNEL: integers.astype(jnp.float32)}, inputs, **field)
    bias = module.get_variable("params", "bias") if module.use_bias else 0.0
    return Sum(outputs, parts[0], parts[1], bias)


def _look_up(module: Any, weights: Weights, ids: jax.Array) -> jax.Array:
    rows = jnp.take(weights.integers, ids, axis=0).astype(jnp.float32)
    found = rows * jnp.take(weights.scale.astype(jnp.float32), ids, axis=0)[..., None]
    return found.astype(module.dtype or weights.scale.dtype)


def _attend(module: Any, weights: Weights, queries: jax.Array) -> jax.Array:
    """Returns the product of queries with all rows of an embedding, which is the head of some models."""
    if isinstance(weights.inputs, str) and weights.inputs == FLOAT:
        table = dequantized(weights.integers, weights.scale, EMBEDDING)
        return _apply(module, {EMBEDDING: table}, queries, "attend")
    integers, scale = _rounded_inputs(queries, weights.inputs, (queries.ndim - 1,))
    numbers = (((queries.ndim - 1,), (1,)), ((), ()))
    sums = lax.dot_general(integers, weights.integers, numbers, preferred_element_type=jnp.int32)
    factor = scale * weights.scale.astype(jnp.float32).reshape((1,) * (sums.ndim - 1) + (-1,))
    return (sums.astype(jnp.float32) * factor).astype(module.dtype or queries.dtype)


def _is_fixed_norm(module: nn.BatchNorm, args: Any, kwargs: Any) -> bool:
    """Returns whether a batch norm uses its running statistics, over the last axis and without a mask."""
    fixed = [args[0]] if args else [kwargs.get("use_running_average"), module.use_running_average]
    return (
        fixed[0 if fixed[0] is not None else -1] is True and module.axis == -1 and kwargs.get("mask") is None
    )


def _folded(module: Any, made: Sum) -> jax.Array:
    mean, variance = (module.get_variable("batch_stats", name) for name in ("mean", "var"))
    slope = lax.rsqrt(variance + module.epsilon)
    if module.use_scale:
        slope = slope * module.get_variable("params", "scale")
    offset = (made.bias - mean) * slope
    if module.use_bias:
        offset = offset + module.get_variable("params", "bias")
    shape = (1,) * (made.sums.ndim - 1) + (-1,)
    outputs = made.sums.astype(jnp.float32) * (made.factor * slope.reshape(shape)) + offset.reshape(shape)
    return outputs.astype(module.dtype or made.outputs.dtype)
