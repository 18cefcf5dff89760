"""A new head on a backbone.

Shapes: B batch, D features, N classes; … stands for no axis, or for the tokens of a text.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax

from dl.models.dropout import Dropout
from dl.sharding import Rules


class WithHead(nn.Module):
    """A backbone that returns features of shape (B, …, D), dense layers with ReLU, and a last dense layer.

    The paths of the backbone's parameters start with `backbone/`, those of the head with `hidden0/`, … and
    `head/`.

    Attributes:
      backbone: model without a head, such as `mobilenet_v2(None)` or `bert_base()`.
      num_classes: number of classes, N.
      hidden: width of each dense layer before the last one.
      dropout: probability that a unit before the last layer is dropped in training.
      dtype: dtype of the computation of the head. Parameters stay float32.
    """

    backbone: nn.Module
    num_classes: int
    hidden: Sequence[int] = ()
    dropout: float = 0.0
    dtype: Any = None

    @property
    def sharding_rules(self) -> Rules:
        """The partition of the backbone's parameters over the axis `tensor`."""
        return getattr(self.backbone, "sharding_rules", ())

    @nn.compact
    def __call__(self, *inputs: jax.Array | None, train: bool = False) -> jax.Array:
        """Returns logits of shape (B, …, N).

        Args:
          inputs: what the backbone reads.
          train: whether the backbone is in training and dropout is on.
        """
        x = self.backbone(*inputs, train=train)
        for number, width in enumerate(self.hidden):
            x = nn.relu(nn.Dense(width, dtype=self.dtype, name=f"hidden{number}")(x))
        x = Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.num_classes, dtype=self.dtype, name="head")(x)
