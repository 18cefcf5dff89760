"""A new head on a backbone.

Shapes: B batch, H height, W width, C channels, D features, N classes.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax

from dl.models.dropout import Dropout


class WithHead(nn.Module):
    """A backbone that returns features of shape (B, D), dense layers with ReLU, and a last one.

    The parameters of the backbone stand under `backbone/`, those of the head under `hidden0/`, … and `head/`.

    Attributes:
      backbone: a model without a head, such as `mobilenet_v2(None)`.
      num_classes: N.
      hidden: the width of each dense layer before the last.
      dropout: the probability that a unit before the last layer is dropped in training.
      dtype: of the computation of the head; parameters stay float32.
    """

    backbone: nn.Module
    num_classes: int
    hidden: Sequence[int] = ()
    dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, image_BHWC: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits of shape (B, N)."""
        x_BD = self.backbone(image_BHWC, train)
        for number, width in enumerate(self.hidden):
            x_BD = nn.relu(nn.Dense(width, dtype=self.dtype, name=f"hidden{number}")(x_BD))
        x_BD = Dropout(self.dropout, deterministic=not train)(x_BD)
        return nn.Dense(self.num_classes, dtype=self.dtype, name="head")(x_BD)
