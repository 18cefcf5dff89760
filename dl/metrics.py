"""Metrics as masked sums and counts, so that they add up exactly over batches and devices.

Shapes: B examples, C classes.
"""

from collections.abc import Iterator, Mapping

import flax.struct
import jax
import jax.numpy as jnp

from dl.labels import class_labels


@flax.struct.dataclass
class Mean:
    """A mean that can be continued: the sum of the values and how many there were."""

    total: jax.Array
    count: jax.Array

    @classmethod
    def of(cls, values_B: jax.Array, mask_B: jax.Array | None = None) -> "Mean":
        """Returns the mean over the examples whose mask is True (all of them without a mask)."""
        values_B = jnp.asarray(values_B, jnp.float32)
        if mask_B is None:
            return cls(values_B.sum(), jnp.float32(values_B.size))
        # `where`, not a product: a NaN on padding must not reach the sum.
        return cls(jnp.where(mask_B, values_B, 0.0).sum(), jnp.asarray(mask_B, jnp.float32).sum())

    def merge(self, other: "Mean") -> "Mean":
        return Mean(self.total + other.total, self.count + other.count)

    def compute(self) -> jax.Array:
        """Returns the mean, 0 where nothing was counted."""
        return self.total / jnp.maximum(self.count, 1.0)


def accuracy(logits_BC: jax.Array, labels: jax.Array, mask_B: jax.Array | None = None) -> Mean:
    """Returns the fraction of examples whose largest logit is at the label.

    Of labels that are distributions, shape B × C: the mean probability at the largest logit.
    """
    predicted_B = logits_BC.argmax(-1)
    labels = class_labels(labels, logits_BC)
    if labels.ndim == logits_BC.ndim:
        return Mean.of(jnp.take_along_axis(labels, predicted_B[..., None], axis=-1)[..., 0], mask_B)
    return Mean.of(predicted_B == labels, mask_B)


@flax.struct.dataclass
class MetricTable(Mapping[str, Mean]):
    """Named means in ONE array: a step hands its metrics to the host in a single transfer.

    Attributes:
      names: of the metrics, in order.
      sums: total and count of each, float32, shape (..., len(names), 2).
    """

    names: tuple[str, ...] = flax.struct.field(pytree_node=False)
    sums: jax.Array

    @classmethod
    def of(cls, metrics: Mapping[str, Mean]) -> "MetricTable":
        names = tuple(metrics)
        rows = [jnp.stack([metrics[name].total, metrics[name].count]) for name in names]
        return cls(names, jnp.stack(rows) if rows else jnp.zeros((0, 2)))

    def __getitem__(self, name: str) -> Mean:
        row = self.sums[..., self.names.index(name), :]
        return Mean(row[..., 0], row[..., 1])

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)
