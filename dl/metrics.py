"""Metrics as masked sums and weights, so that they add up exactly over batches and devices.

A metric states where it is made whether small or large values are good. What each example adds to it goes
with it in evaluation: an interval follows from that, not from the metric's name.

Shapes: B examples, C classes, K metrics, M runs; … stands for M where several runs train at the same time.
"""

from collections.abc import Iterator, Mapping
from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp

from dl.labels import class_labels

Direction = Literal["min", "max"]
"""Whether the smallest or the largest value of a metric is the best one."""


@flax.struct.dataclass
class Mean:
    """A mean that can be continued: the sum of the values and how many there were.

    Attributes:
      total: of the values.
      count: how many there were, such as examples, or tokens of sequences of unequal length.
      each: what each example adds to `total` and to `count`, both of shape B; None where it is not known.
      better: whether small or large values are good; None where that was not stated.
    """

    total: jax.Array
    count: jax.Array
    each: tuple[jax.Array, jax.Array] | None = None
    better: Direction | None = flax.struct.field(pytree_node=False, default=None)

    @classmethod
    def of(
        cls, values: jax.Array, mask: jax.Array | None = None, *, better: Direction | None = None
    ) -> "Mean":
        """Returns the mean over the values whose mask is True (all of them without a mask).

        Args:
          values: one for each example, shape B, or several, such as one for each token, B × T.
          mask: of the same shape, or of shape B. Numbers instead of truth values are weights: the mean is
            then Σ weight value / Σ weight.
          better: whether small or large values are good, for whatever chooses by this metric.

        Raises:
          ValueError: the mask has another shape, or `better` is another word.
        """
        if better not in (None, "min", "max"):
            raise ValueError(f"better={better!r} is not understood; it must be 'min', 'max' or None")
        values = jnp.asarray(values, jnp.float32)
        if mask is None:
            mask, total, count = jnp.ones(values.shape, bool), values.sum(), jnp.float32(values.size)
        else:
            mask = jnp.asarray(mask)
            if mask.shape not in (values.shape, values.shape[:1]):
                raise ValueError(
                    f"a mask of shape {mask.shape} does not fit values of shape {values.shape}; it must have "
                    "the same shape, or that of the leading axis"
                )
            mask = jnp.broadcast_to(mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim)), values.shape)
            # `where`, not a product: a NaN on padding must not reach the sum.
            values = jnp.where(mask, values, 0.0)
            if mask.dtype != jnp.bool_:
                values = values * mask
            total, count = values.sum(), jnp.asarray(mask, jnp.float32).sum()
        if not values.ndim:
            return cls(total, count, None, better)
        inner = tuple(range(1, values.ndim))
        return cls(total, count, (values.sum(inner), jnp.asarray(mask, jnp.float32).sum(inner)), better)

    def merge(self, other: "Mean") -> "Mean":
        return Mean(self.total + other.total, self.count + other.count, None, self.better)

    def times(self, factor: float | jax.Array) -> "Mean":
        """Returns the mean of the values times a positive factor."""
        return Mean(self.total * factor, self.count, None, self.better)

    def plus(self, constant: float | jax.Array) -> "Mean":
        """Returns the mean of the values plus a constant; where nothing was counted, it stays 0."""
        return Mean(self.total + self.count * constant, self.count, None, self.better)

    @property
    def divisor(self) -> jax.Array:
        """What the total is divided by: the count, 1 where nothing was counted."""
        return jnp.where(self.count > 0, self.count, 1.0)

    def compute(self) -> jax.Array:
        """Returns the mean, 0 where nothing was counted."""
        return self.total / self.divisor


def accuracy(logits_BC: jax.Array, labels: jax.Array, mask_B: jax.Array | None = None) -> Mean:
    """Returns the fraction of examples whose largest logit is at the label.

    Of labels that are distributions, shape B × C: the mean probability at the largest logit.
    """
    predicted_B = logits_BC.argmax(-1)
    labels = class_labels(labels, logits_BC)
    if labels.ndim == logits_BC.ndim:
        share_B = jnp.take_along_axis(labels, predicted_B[..., None], axis=-1)[..., 0]
        return Mean.of(share_B, mask_B, better="max")
    return Mean.of(predicted_B == labels, mask_B, better="max")


@flax.struct.dataclass
class MetricTable(Mapping[str, Mean]):
    """Named means in ONE array: a step hands its metrics to the host in a single transfer.

    Attributes:
      names: of the metrics, in order.
      better: the direction of each, None where it was not stated.
      sums: total and count of each, float32, shape … × K × 2.
      examples: of an evaluation, total and count of each example, float32, shape … × K × B × 2; NaN for a
        metric that does not tell them. None in training.
    """

    names: tuple[str, ...] = flax.struct.field(pytree_node=False)
    better: tuple[Direction | None, ...] = flax.struct.field(pytree_node=False)
    sums: jax.Array
    examples: jax.Array | None = None

    @classmethod
    def of(cls, metrics: Mapping[str, Mean], num_examples: int | None = None) -> "MetricTable":
        """Returns the table of metrics; with `num_examples` also what each example adds to them."""
        names = tuple(metrics)
        better = tuple(metrics[name].better for name in names)
        rows = [jnp.stack([metrics[name].total, metrics[name].count]) for name in names]
        sums = jnp.stack(rows) if rows else jnp.zeros((0, 2))
        if num_examples is None:
            return cls(names, better, sums)
        unknown = jnp.full((num_examples, 2), jnp.nan)
        examples = [
            unknown if each is None or each[0].shape != (num_examples,) else jnp.stack(each, -1)
            for each in (metrics[name].each for name in names)
        ]
        return cls(names, better, sums, jnp.stack(examples) if examples else jnp.zeros((0, num_examples, 2)))

    @property
    def directions(self) -> dict[str, Direction | None]:
        """By name, whether small or large values are good."""
        return dict(zip(self.names, self.better, strict=True))

    def __getitem__(self, name: str) -> Mean:
        place = self.names.index(name)
        row = self.sums[..., place, :]
        return Mean(row[..., 0], row[..., 1], None, self.better[place])

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)
