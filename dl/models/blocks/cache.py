"""The cache of keys and values with which a decoder reads one more token without reading the others again.

Shapes: B rows, T new tokens, S slots, K key-value heads, H head dim.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class LayerCache:
    """Keys and values of one attention layer. The slots of a head are contiguous in memory."""

    keys_BKSH: jax.Array
    values_BKSH: jax.Array

    def write(self, key_BTKH: jax.Array, value_BTKH: jax.Array, slots_BT: jax.Array) -> "LayerCache":
        """Returns the cache with keys and values written to slots. Slots beyond the last are dropped."""
        rows_B1 = jnp.arange(len(slots_BT))[:, None]

        def put(old_BKSH: jax.Array, new_BTKH: jax.Array) -> jax.Array:
            # Separated by a slice, the two index arrays put their axes B × T first, which is how the new
            # values lie.
            return old_BKSH.at[rows_B1, :, slots_BT].set(new_BTKH.astype(old_BKSH.dtype), mode="drop")

        return LayerCache(put(self.keys_BKSH, key_BTKH), put(self.values_BKSH, value_BTKH))


@flax.struct.dataclass
class Cache:
    """The cache of a decoder. A token at position p of its row lies in slot p.

    Attributes:
      layers: caches of self-attention: a tuple with one for each layer, or one whose arrays have a leading
        axis of layers where the model scans its layers.
      lengths_B: number of tokens that each row holds, int32.
      memory: caches of the attention to an encoder's outputs, in the form of `layers`; `None` for a model
        without an encoder.
      memory_mask_BS: which of the encoder's outputs are not padding.
    """

    layers: Any
    lengths_B: jax.Array
    memory: Any = None
    memory_mask_BS: jax.Array | None = None

    @classmethod
    def empty(
        cls,
        num_layers: int,
        batch_size: int,
        length: int,
        num_heads: int,
        head_dim: int,
        *,
        dtype: Any = jnp.float32,
        is_scanned: bool = False,
    ) -> "Cache":
        """Returns a cache with `length` free slots for each row.

        Args:
          num_layers: number of attention layers.
          batch_size: number of rows, B.
          length: number of slots, S: the largest number of tokens that a row can hold.
          num_heads: number of key-value heads, K.
          head_dim: H.
          dtype: dtype of keys and values.
          is_scanned: whether the model scans its layers.
        """
        leading = (num_layers,) if is_scanned else ()
        shape = (*leading, batch_size, num_heads, length, head_dim)

        def layer() -> LayerCache:
            return LayerCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

        layers = layer() if is_scanned else tuple(layer() for _ in range(num_layers))
        return cls(layers, jnp.zeros(batch_size, jnp.int32))

    @property
    def num_slots(self) -> int:
        """The number of slots of each row, S."""
        return int(jax.tree.leaves(self.layers)[0].shape[-2])

    def slots(self, mask_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns where new tokens belong: positions B × T, and slots B × T, beyond the last for padding.

        Args:
          mask_BT: which of the new tokens are not padding. Padding may lie before or after them.
        """
        positions_BT = self.lengths_B[:, None] + jnp.cumsum(mask_BT, axis=1, dtype=jnp.int32) - 1
        return jnp.maximum(positions_BT, 0), jnp.where(mask_BT, positions_BT, self.num_slots)

    def extended(self, layers: Any, mask_BT: jax.Array) -> "Cache":
        """Returns the cache after new tokens were written to its layers."""
        return self.replace(  # type: ignore[attr-defined]
            layers=layers, lengths_B=self.lengths_B + mask_BT.sum(1, dtype=jnp.int32)
        )


def last_valid(x_BTD: jax.Array, mask_BT: jax.Array) -> jax.Array:
    """Returns the last row of each sequence that is not padding, shape B × 1 × D."""
    last_B = mask_BT.shape[1] - 1 - jnp.argmax(mask_BT[:, ::-1], axis=1)
    return jnp.take_along_axis(x_BTD, last_B[:, None, None], axis=1)
