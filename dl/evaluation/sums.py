"""Sums that come out the same however the examples are cut into batches and devices.

A float32 sum depends on the order of its terms in the last digits. Here a sum is carried as two float32
numbers, high + low, which together hold about 48 bits: what is reported, the high part, no longer shows the
order, and is as exact as a sum in float64.

Shapes: B examples, then any dimensions of one example's value.
"""

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Double:
    """A real number, or an array of them, as high + low with |low| <= half a unit of high's last place.

    Infinite and NaN values stand in `high`, with `low` 0.
    """

    high: jax.Array
    low: jax.Array

    @classmethod
    def of(cls, value: jax.Array) -> "Double":
        value = jnp.asarray(value, jnp.float32)
        return cls(value, jnp.zeros_like(value))

    @classmethod
    def sum(cls, values_B: jax.Array, mask_B: jax.Array | None = None) -> "Double":
        """Returns the sum over the leading axis of the values whose mask is True, 0 of none."""
        values_B = mask_values(jnp.asarray(values_B, jnp.float32), mask_B)
        zero = jnp.float32(0)
        return cls(*jax.lax.reduce((values_B, jnp.zeros_like(values_B)), (zero, zero), _add, (0,)))

    def __add__(self, other: "Double") -> "Double":
        return Double(*_add((self.high, self.low), (other.high, other.low)))

    def __neg__(self) -> "Double":
        return Double(-self.high, -self.low)


@flax.struct.dataclass
class ExactMean:
    """A mean that can be continued, as `dl.metrics.Mean`; beyond 2^24 examples too.

    Attributes:
      total: of the values.
      count: of the examples, int32.
    """

    total: Double
    count: jax.Array

    @classmethod
    def of(cls, values_B: jax.Array, mask_B: jax.Array | None = None) -> "ExactMean":
        """Returns the mean over the examples whose mask is True (all of them without a mask)."""
        return cls(Double.sum(values_B, mask_B), num_valid(values_B, mask_B))

    def merge(self, other: "ExactMean") -> "ExactMean":
        return ExactMean(self.total + other.total, self.count + other.count)

    def compute(self) -> jax.Array:
        """Returns the mean, 0 where nothing was counted."""
        return self.total.high / jnp.maximum(self.count, 1)


def num_valid(values_B: jax.Array, mask_B: jax.Array | None) -> jax.Array:
    """Returns how many examples the mask lets through, int32."""
    if mask_B is None:
        return jnp.int32(jnp.shape(values_B)[0])
    return jnp.asarray(mask_B, bool).sum(dtype=jnp.int32)


def mask_values(values_B: jax.Array, mask_B: jax.Array | None, fill: float = 0.0) -> jax.Array:
    """Returns the values with `fill` in place of masked ones: a NaN on padding must not reach a sum."""
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
