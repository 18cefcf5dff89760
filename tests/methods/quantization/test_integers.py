"""Rounding: no element is further than half a step away, and bytes hold what was put into them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl.methods.quantization import integers
from dl.methods.quantization.weights import dequantized, quantized

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    ("name", "shape", "channel"),
    [("kernel", (7, 5), 1), ("kernel", (3, 3, 4, 6), 3), ("embedding", (9, 4), 0)],
)
def test_every_weight_is_within_half_a_step(bits, name, shape, channel):
    weights = RANDOM.normal(size=shape).astype(np.float32) * np.float32(10.0) ** RANDOM.integers(-4, 4)
    weights[..., 0] *= 1000  # one channel, or one column of an embedding, with a range of its own
    made, scale = quantized(jnp.asarray(weights), name, bits)
    largest = 2 ** (bits - 1) - 1
    others = tuple(axis for axis in range(len(shape)) if axis != channel)
    np.testing.assert_allclose(scale, np.abs(weights).max(others) / largest, rtol=1e-6)
    assert made.dtype == jnp.int8
    assert int(jnp.abs(made).max()) == largest
    step = np.asarray(scale).reshape([-1 if axis == channel else 1 for axis in range(len(shape))])
    error = np.abs(np.asarray(dequantized(made, scale, name)) - weights)
    assert (error <= 0.5 * step * (1 + 1e-5)).all()


def test_a_channel_of_zeros_stays_zero():
    made, scale = quantized(jnp.zeros((4, 2)), "kernel", 8)
    np.testing.assert_array_equal(dequantized(made, scale, "kernel"), 0)


@pytest.mark.parametrize("size", [1, 6, 7])
def test_two_integers_of_four_bits_fit_into_a_byte(size):
    values = RANDOM.integers(-8, 8, (3, 2, size)).astype(np.int8)
    packed = integers.pack(jnp.asarray(values))
    assert packed.dtype == jnp.uint8
    assert packed.shape == (3, 2, (size + 1) // 2)
    nibbles = [[int(values[i, j, k]) % 16 for k in range(size)] + [0] for i in range(3) for j in range(2)]
    expected = [[row[k] + 16 * row[k + 1] for k in range(0, size, 2)] for row in nibbles]
    np.testing.assert_array_equal(packed.reshape(6, -1), expected)
    np.testing.assert_array_equal(integers.unpack(packed, size), values)


def test_the_gradient_passes_through_rounding_and_stops_where_it_clips():
    values = jnp.array([-300.0, -12.7, 0.26, 3.0, 126.9, 127.5])
    rounded, pullback = jax.vjp(lambda x: integers.straight_through(x, 1.0, 8), values)
    np.testing.assert_array_equal(rounded, [-127, -13, 0, 3, 127, 127])
    np.testing.assert_array_equal(pullback(jnp.ones(6))[0], [0, 1, 1, 1, 1, 0])
