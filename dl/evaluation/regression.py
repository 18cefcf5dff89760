"""Metrics of a regression: mean squared error, mean absolute error and R².

Shapes: B examples, then any dimensions of one target. Each element of the target has its metrics.
"""

import flax.struct
import jax
import jax.numpy as jnp

from dl.evaluation.sums import Double, ExactMean, mask_values, num_valid


@flax.struct.dataclass
class Regression:
    """Sums over examples that add up over batches and devices.

    Attributes:
      squared_error: (prediction - target)²; its `compute()` is the MSE, or 0 without examples.
      absolute_error: |prediction - target|; its `compute()` is the MAE, or 0 without examples.
      target_mean: the mean of the targets; 0 without examples.
      deviation: Σ (target - mean)². It is kept because Σ target² - n mean² would lose digits.
    """

    squared_error: ExactMean
    absolute_error: ExactMean
    target_mean: Double
    deviation: Double

    @classmethod
    def of(
        cls, predictions_B: jax.Array, targets_B: jax.Array, mask_B: jax.Array | None = None
    ) -> "Regression":
        """Returns the sums over the examples whose mask is True (over all examples without a mask)."""
        targets_B = jnp.asarray(targets_B, jnp.float32)
        error_B = jnp.asarray(predictions_B, jnp.float32) - targets_B
        # Differences from the smallest target are summed: they are small, and exactly 0 for constant targets.
        smallest = mask_values(targets_B, mask_B, jnp.inf).min(0, initial=jnp.inf)
        count = num_valid(targets_B, mask_B)
        smallest = jnp.where(count > 0, smallest, 0.0)
        above_B = targets_B - smallest[None]
        mean_above = Double.sum(above_B, mask_B).high / jnp.maximum(count, 1)
        return cls(
            ExactMean.of(error_B**2, mask_B),
            ExactMean.of(jnp.abs(error_B), mask_B),
            Double.of(smallest) + Double.of(mean_above),
            Double.sum((above_B - mean_above[None]) ** 2, mask_B),
        )

    def merge(self, other: "Regression") -> "Regression":
        """Returns the sums over the examples of both (Chan, Golub & LeVeque 1979, eqs. 2.1a and b)."""
        squared_error = self.squared_error.merge(other.squared_error)
        num_self = self.squared_error.count
        weight = other.squared_error.count / jnp.maximum(squared_error.count, 1)
        step = (other.target_mean + -self.target_mean).high
        mean = self.target_mean + Double.of(step * weight)
        # For the first examples the mean is taken unchanged; `step` would round it.
        mean = jax.tree.map(lambda new, theirs: jnp.where(num_self > 0, new, theirs), mean, other.target_mean)
        return Regression(
            squared_error,
            self.absolute_error.merge(other.absolute_error),
            mean,
            self.deviation + other.deviation + Double.of(step * (step * weight * num_self)),
        )


def r2(sums: Regression) -> jax.Array:
    """Returns the coefficient of determination 1 - Σ (target - prediction)² / Σ (target - mean)².

    As in `sklearn.metrics.r2_score`, it is NaN for fewer than two examples. For constant targets it is 1 if
    all predictions are correct, else 0.
    """
    error, deviation = sums.squared_error.total.high, sums.deviation.high
    is_constant = deviation == 0
    figure = jnp.where(
        is_constant, jnp.where(error == 0, 1.0, 0.0), 1 - error / jnp.where(is_constant, 1.0, deviation)
    )
    return jnp.where(sums.squared_error.count < 2, jnp.nan, figure)
