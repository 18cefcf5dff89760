"""The weights of layers as integers with scales, in a tree of variables.

The integers take the place of the weights, under their names. Beside them lie the scales::

    dense/kernel        int8 (I, O); with 4 bits uint8 (I, ⌈O / 2⌉)
    dense/kernel_scale  float32 (O,)
    dense/input_scale   float32 (), where the scale of the inputs is fixed
    dense/bias          float32 (O,), as it was

An embedding has a scale for each row: `embedding` (V, D) and `embedding_scale` (V,). Both uses of it, looking
up a row and a product with all rows, need no other. Layers that are scanned have one more leading axis.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from dl.errors import UserError
from dl.methods.quantization.integers import pack, scale_of, to_integers, unpack
from dl.types import Params

KERNEL, EMBEDDING = "kernel", "embedding"
INPUT_SCALE = "input_scale"


def name_of_scale(name: str) -> str:
    """Returns the name of the scales of the weights with a name."""
    return f"{name}_scale"


@functools.partial(jax.jit, static_argnames=("name", "bits", "stacked"))
def quantized(weights: jax.Array, name: str, bits: int, stacked: int = 0) -> tuple[jax.Array, jax.Array]:
    """Returns the int8 integers of weights, not packed, and their scales.

    Args:
      weights: the kernel or embedding of a layer.
      name: `kernel`, with a scale for each element of the last axis, or `embedding`, for each row.
      bits: 8 or 4.
      stacked: number of leading axes of layers that are scanned.
    """
    kept = weights.ndim - (1 if name == KERNEL else 2)
    axes = tuple(axis for axis in range(stacked, weights.ndim) if axis != kept)
    scale = scale_of(weights, axes, bits)
    return to_integers(weights, scale, bits), scale.reshape(*weights.shape[:stacked], weights.shape[kept])


def dequantized(integers: jax.Array, scale: jax.Array, name: str) -> jax.Array:
    """Returns s · q of one layer as float32."""
    shape = (1,) * (integers.ndim - 1) + (-1,) if name == KERNEL else (-1, 1)
    return integers.astype(jnp.float32) * scale.astype(jnp.float32).reshape(shape)


def unpacked(stored: jax.Array, size: int) -> jax.Array:
    """Returns the int8 integers of stored ones; `size` is the length of the last axis."""
    return unpack(stored, size) if stored.dtype == jnp.uint8 else stored


def with_unpacked_kernels(params: Params) -> Params:
    """Returns the parameters with kernels of 4 bits as int8, so that each column has a channel of its own."""
    leaves = flatten_dict(dict(params))
    for keys, leaf in leaves.items():
        scale = leaves.get((*keys[:-1], name_of_scale(KERNEL)))
        if keys[-1] == KERNEL and scale is not None:
            leaves[keys] = unpacked(leaf, scale.shape[-1])
    return unflatten_dict(leaves)


def with_integers(
    params: Params, layers: Mapping[str, float | str], stacked: Mapping[str, int], bits: int
) -> Params:
    """Returns the parameters with the weights of layers as integers, as the docstring of the module shows.

    Args:
      params: float parameters.
      layers: path of each layer, with the scale of its inputs if it is fixed.
      stacked: number of leading axes of layers that are scanned.
      bits: 8 or 4.

    Raises:
      UserError: the parameters do not have such a layer.
    """
    leaves = flatten_dict(dict(params))
    for path, inputs in layers.items():
        keys = tuple(path.split("/")) if path else ()
        name = KERNEL if (*keys, KERNEL) in leaves else EMBEDDING
        if (*keys, name) not in leaves:
            raise UserError(
                f"the quantised layer {path!r} is not in the model; calibrate with variables of this model"
            )
        axes = stacked.get(path, 0)
        weights = jnp.asarray(leaves[*keys, name])
        if not jnp.issubdtype(weights.dtype, jnp.floating):
            raise UserError(f"{path}/{name} already holds integers; quantise the float parameters")
        integers, scale = quantized(weights, name, bits, axes)
        leaves[*keys, name] = jax.jit(pack)(integers) if bits == 4 else integers
        leaves[*keys, name_of_scale(name)] = scale
        if not isinstance(inputs, str):
            leaves[*keys, INPUT_SCALE] = jnp.full(weights.shape[:axes], inputs, jnp.float32)
    return unflatten_dict(leaves)
