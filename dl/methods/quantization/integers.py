"""Integers of 8 or 4 bits in place of floats: rounding, packing, and the gradient through rounding.

A float x becomes the integer q = clip(round(x / s), -Q, Q) with a scale s and Q = 2^(bits - 1) - 1. The
integer stands for s · q. The scale is symmetric: 0 is the integer 0, so that padding with zeros stays exact,
and the product of two such numbers is one product of integers and one of scales (Jacob et al. 2018,
section 2).

Shapes: O output channels, V rows of an embedding.
"""

import jax
import jax.numpy as jnp

INPUT_BITS = 8  # of the inputs of layers, whatever the weights have


def largest(bits: int) -> int:
    """Returns Q, the largest integer."""
    return 2 ** (bits - 1) - 1


def scale_of(array: jax.Array, axes: tuple[int, ...], bits: int) -> jax.Array:
    """Returns the smallest scales that clip nothing: max |x| / Q over `axes`, which stay with length 1."""
    magnitude = jnp.abs(array.astype(jnp.float32)).max(axes, keepdims=True)
    return jnp.where(magnitude > 0, magnitude, 1.0) / largest(bits)


def rounded(array: jax.Array, scale: jax.Array | float, bits: int) -> jax.Array:
    """Returns the integers as floats: clip(round(x / s), -Q, Q). Halves go to the even neighbour."""
    limit = largest(bits)
    return jax.lax.clamp(-float(limit), jnp.round(array.astype(jnp.float32) / scale), float(limit))


def to_integers(array: jax.Array, scale: jax.Array | float, bits: int) -> jax.Array:
    """Returns the integers as int8. Those of 4 bits lie in [-7, 7]."""
    return rounded(array, scale, bits).astype(jnp.int8)


def straight_through(array: jax.Array, scale: jax.Array | float, bits: int) -> jax.Array:
    """Returns s · q, with a gradient as if nothing were rounded.

    The gradient is 0 where x is clipped (Bengio et al. 2013; Jacob et al. 2018, section 3).
    """
    scale = jax.lax.stop_gradient(jnp.asarray(scale, jnp.float32))
    bound = largest(bits) * scale
    clipped = jnp.where(jnp.abs(array) > bound, jnp.sign(array) * bound, array)
    exact = rounded(array, scale, bits) * scale
    return (clipped + jax.lax.stop_gradient(exact - clipped)).astype(array.dtype)


def pack(integers: jax.Array) -> jax.Array:
    """Returns integers of 4 bits, int8 in [-8, 7], two in a byte: uint8, the last axis half as long.

    Neighbours share a byte, the first one in its low half. An odd axis is filled with a 0.
    """
    odd = integers.shape[-1] % 2
    filled = jnp.pad(integers, [(0, 0)] * (integers.ndim - 1) + [(0, odd)])
    halves = (filled.astype(jnp.uint8) & 15).reshape(*filled.shape[:-1], -1, 2)
    return halves[..., 0] | (halves[..., 1] << 4)


def unpack(packed: jax.Array, size: int) -> jax.Array:
    """Returns the int8 integers that `pack` packed; `size` is the length of the last axis."""
    low, high = ((packed << shift).astype(jnp.int8) >> 4 for shift in (4, 0))  # >> keeps the sign
    return jnp.stack([low, high], -1).reshape(*packed.shape[:-1], -1)[..., :size]
