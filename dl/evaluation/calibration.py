"""The calibration of a classifier: reliability diagram and expected calibration error.

Shapes: B examples, C classes, K bins.
"""

from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from dl.evaluation.classification import valid_examples
from dl.evaluation.outcomes import Outcomes
from dl.evaluation.sums import Double


@flax.struct.dataclass
class Calibration:
    """Sums over K bins of equal width ((k - 1) / K, k / K] of the confidence.

    The confidence is the probability of the predicted class.

    Attributes:
      counts: the number of examples in each bin, int32, shape K.
      hits: the number of examples whose prediction is the label, int32, shape K.
      confidence: the sum of the confidences in each bin, shape K.
    """

    counts: jax.Array
    hits: jax.Array
    confidence: Double

    @classmethod
    def of(
        cls,
        log_probabilities_BC: jax.Array,
        labels_B: jax.Array,
        mask_B: jax.Array | None = None,
        num_bins: int = 15,
    ) -> "Calibration":
        """Returns the sums over the valid examples: mask True (or no mask) and label in [0, C).

        An example with a NaN makes the confidence of its bin NaN, and so the expected calibration error.
        """
        valid_B = valid_examples(labels_B, mask_B, jnp.shape(log_probabilities_BC)[-1])
        return cls.of_outcomes(Outcomes.of(log_probabilities_BC, labels_B), valid_B, num_bins)

    @classmethod
    def of_outcomes(cls, outcomes: Outcomes, mask_B: jax.Array, num_bins: int = 15) -> "Calibration":
        """Returns the sums over the outcomes whose mask is True."""
        log_confidence_B = outcomes.predicted_log_probability
        bin_B = (log_confidence_B[:, None] > _log_edges(num_bins)[None, :]).sum(-1)
        in_bin_BK = mask_B[:, None] & (bin_B[:, None] == jnp.arange(num_bins)[None, :])
        return cls(
            in_bin_BK.sum(0, dtype=jnp.int32),
            (in_bin_BK & outcomes.is_right[:, None]).sum(0, dtype=jnp.int32),
            Double.sum(jnp.where(in_bin_BK, jnp.exp(log_confidence_B)[:, None], 0.0)),
        )

    def merge(self, other: "Calibration") -> "Calibration":
        return Calibration(
            self.counts + other.counts, self.hits + other.hits, self.confidence + other.confidence
        )


class Reliability(NamedTuple):
    """The values of a reliability diagram for each bin, shape K; NaN if the bin is empty."""

    accuracy: jax.Array
    confidence: jax.Array


def reliability(sums: Calibration) -> Reliability:
    """Returns the accuracy and the mean confidence of each bin."""
    counts_K = jnp.where(sums.counts > 0, sums.counts, jnp.nan)
    return Reliability(sums.hits / counts_K, sums.confidence.high / counts_K)


def expected_calibration_error(sums: Calibration) -> jax.Array:
    """Returns Σ_k n_k / n |accuracy_k - confidence_k| (Guo et al. 2017, eq. 3); 0 without examples."""
    gap_K = jnp.abs(sums.hits - sums.confidence.high)
    return gap_K.sum() / jnp.maximum(sums.counts.sum(), 1)


def _log_edges(num_bins: int) -> np.ndarray:
    """Returns the logarithms of the inner edges, rounded down to float32.

    A float32 is above the rounded edge exactly if it is above the true edge. So rounding, of the edge or of
    an exp, never moves an example into another bin.
    """
    edges = np.log(np.linspace(0.0, 1.0, num_bins + 1)[1:-1])
    rounded = edges.astype(np.float32)
    return np.where(rounded > edges, np.nextafter(rounded, np.float32(-np.inf)), rounded)
