"""Metrics as masked sums and weights, so that they add up exactly over batches and devices.

The code that makes a metric states whether small or large values are good. In evaluation a metric also holds
the contribution of each example, from which a confidence interval is computed.

Shapes: B examples, C classes, K metrics, M runs. … stands for M where several runs train at the same time.
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
    """A mean that can be merged with other means: the sum of the values and their number.

    Attributes:
      total: sum of the values.
      count: number of the values, such as examples, or tokens of sequences of unequal length.
      each: contribution of each example to `total` and to `count`, both of shape B. `None` means that it is
        not known.
      better: whether small ("min") or large ("max") values are good. `None` means that it is not stated.
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
          values: one value for each example, shape B, or several, such as one for each token, shape B × T.
          mask: a mask of the same shape or of shape B. Numbers instead of booleans are weights: the mean is
            then Σ weight value / Σ weight.
          better: whether small ("min") or large ("max") values are good. Model selection and early stopping
            use it.

        Raises:
          ValueError: the mask has another shape, or `better` has another value.
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
                    f"the same shape or the shape {values.shape[:1]}"
                )
            mask = jnp.broadcast_to(mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim)), values.shape)
            # A product would not do: a NaN on padding must not reach the sum.
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
        """Returns the mean of the values plus a constant. Where the count is 0, the mean stays 0."""
        return Mean(self.total + self.count * constant, self.count, None, self.better)

    @property
    def divisor(self) -> jax.Array:
        """The divisor of the total: the count, or 1 where the count is 0."""
        return jnp.where(self.count > 0, self.count, 1.0)

    def compute(self) -> jax.Array:
        """Returns the mean, or 0 where the count is 0."""
        return self.total / self.divisor


def accuracy(logits_BC: jax.Array, labels: jax.Array, mask_B: jax.Array | None = None) -> Mean:
    """Returns the fraction of examples whose largest logit is at the label.

    For labels that are distributions, shape B × C, it is the mean probability at the largest logit.

    Raises:
      UserError: the labels do not fit the logits.
    """
    predicted_B = logits_BC.argmax(-1)
    labels = class_labels(labels, logits_BC)
    if labels.ndim == logits_BC.ndim:
        share_B = jnp.take_along_axis(labels, predicted_B[..., None], axis=-1)[..., 0]
        return Mean.of(share_B, mask_B, better="max")
    return Mean.of(predicted_B == labels, mask_B, better="max")


@flax.struct.dataclass
class MetricTable(Mapping[str, Mean]):
    """Named means in ONE array, so that a step sends its metrics to the host in a single transfer.

    Attributes:
      names: names of the metrics, in order.
      better: direction of each metric. `None` means that it is not stated.
      sums: total and count of each metric, float32, shape … × K × 2.
      examples: in an evaluation, total and count of each example, float32, shape … × K × B × 2. They are NaN
        for a metric without contributions per example. `None` in training.
    """

    names: tuple[str, ...] = flax.struct.field(pytree_node=False)
    better: tuple[Direction | None, ...] = flax.struct.field(pytree_node=False)
    sums: jax.Array
    examples: jax.Array | None = None

    @classmethod
    def of(cls, metrics: Mapping[str, Mean], num_examples: int | None = None) -> "MetricTable":
        """Returns the table of metrics. With `num_examples` it also holds each example's contribution."""
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
        index = self.names.index(name)
        row = self.sums[..., index, :]
        return Mean(row[..., 0], row[..., 1], None, self.better[index])

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)
