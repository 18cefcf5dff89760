"""Sums that do not depend on how the examples are split into batches and devices.

The last digits of a float32 sum depend on the order of its terms. Here a sum is stored as two float32
numbers, high + low, which together hold about 48 bits. The reported high part does not depend on the order,
and is as accurate as a sum in float64.

Shapes: B examples, then any dimensions of one example's value.
"""

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Double:
    """A real number, or an array of them, as high + low with |low| <= half a unit of high's last place.

    Infinite and NaN values are stored in `high`, with `low` 0.
    """

    high: jax.Array
    low: jax.Array

    @classmethod
    def of(cls, value: jax.Array) -> "Double":
        value = jnp.asarray(value, jnp.float32)
        return cls(value, jnp.zeros_like(value))

    @classmethod
    def sum(cls, values_B: jax.Array, mask_B: jax.Array | None = None) -> "Double":
        """Returns the sum over the leading axis of the values whose mask is True; 0 if there are none."""
        values_B = mask_values(jnp.asarray(values_B, jnp.float32), mask_B)
        zero = jnp.float32(0)
        return cls(*jax.lax.reduce((values_B, jnp.zeros_like(values_B)), (zero, zero), _add, (0,)))

    def __add__(self, other: "Double") -> "Double":
        return Double(*_add((self.high, self.low), (other.high, other.low)))

    def __neg__(self) -> "Double":
        return Double(-self.high, -self.low)


@flax.struct.dataclass
class ExactMean:
    """A mean to which examples can be added, as `dl.metrics.Mean`; it also works beyond 2^24 examples.

    Attributes:
      total: the sum of the values.
      count: the number of examples, int32.
    """

    total: Double
    count: jax.Array

    @classmethod
    def of(cls, values_B: jax.Array, mask_B: jax.Array | None = None) -> "ExactMean":
        """Returns the mean over the examples whose mask is True (over all examples without a mask)."""
        return cls(Double.sum(values_B, mask_B), num_valid(values_B, mask_B))

    def merge(self, other: "ExactMean") -> "ExactMean":
        return ExactMean(self.total + other.total, self.count + other.count)

    def compute(self) -> jax.Array:
        """Returns the mean; 0 without examples."""
        return self.total.high / jnp.maximum(self.count, 1)


def num_valid(values_B: jax.Array, mask_B: jax.Array | None) -> jax.Array:
    """Returns the number of examples whose mask is True, int32."""
    if mask_B is None:
        return jnp.int32(jnp.shape(values_B)[0])
    return jnp.asarray(mask_B, bool).sum(dtype=jnp.int32)


def mask_values(values_B: jax.Array, mask_B: jax.Array | None, fill: float = 0.0) -> jax.Array:
    """Returns the values with `fill` in place of masked ones, so that a NaN in padding is not summed."""
    if mask_B is None:
        return values_B
    mask_B = jnp.asarray(mask_B, bool)
    return jnp.where(mask_B.reshape(mask_B.shape + (1,) * (values_B.ndim - 1)), values_B, fill)


def _add(x: tuple[jax.Array, jax.Array], y: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Returns x + y, renormalised (Knuth, TAOCP vol. 2, 4.2.2, theorem B; Dekker 1971, 4)."""
    (x_high, x_low), (y_high, y_low) = x, y
    total = x_high + y_high
    y_part = total - x_high
    error = (x_high - (total - y_part)) + (y_high - y_part) + (x_low + y_low)
    high = total + error
    low = error - (high - total)
    is_finite = jnp.isfinite(total)
    return jnp.where(is_finite, high, total), jnp.where(is_finite, low, 0.0)
