"""The calls that all encoder-decoders share.

Shapes: B batch, S tokens of the source, T tokens of the target, D model dim, V vocabulary.
"""

from typing import Any

import flax.linen as nn
import jax

from dl.models.blocks.cache import Cache
from dl.models.blocks.layer import Context
from dl.models.blocks.sequences import same_segment


class EncoderDecoder(nn.Module):
    """A model that reads a source, in which every token sees every other, and writes a target token by token.

    A family of models is a subclass. Its `setup` makes the `Stack` named `decoder_layers`. It defines
    `encode`, `decode` and `empty_cache(batch_size, length)`.
    """

    def encode(
        self, source_BS: jax.Array, segment_ids_BS: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """Returns the outputs of the encoder, shape B × S × D."""
        raise NotImplementedError

    def decode(
        self,
        target_BT: jax.Array,
        segment_ids_BT: jax.Array | None = None,
        cache: Cache | None = None,
        memory_BSD: jax.Array | None = None,
        memory_mask_BTS: jax.Array | None = None,
        train: bool = False,
    ) -> Any:
        """Returns what `blocks.decoder.decode` returns: logits, or, with a cache, logits and the cache."""
        raise NotImplementedError

    def __call__(
        self,
        source_BS: jax.Array,
        source_segment_ids_BS: jax.Array | None,
        target_BT: jax.Array,
        target_segment_ids_BT: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Returns logits of shape B × T × V. Those at t depend on the source and on the target up to t.

        Args:
          source_BS: tokens of the source, integers.
          source_segment_ids_BS: number of the sequence that each token of the source belongs to; 0 is
            padding. `None` means one sequence without padding in each row. A mask that is True for tokens
            and False for padding is right for one sequence in each row.
          target_BT: tokens that the decoder reads: a token that starts every sequence, and the target
            without its last token.
          target_segment_ids_BT: the same for the target. A token attends to the source of the same number.
            `None` means 1 everywhere.
          train: whether dropout is on.
        """
        memory_BSD = self.encode(source_BS, source_segment_ids_BS, train)
        if source_segment_ids_BS is None:
            memory_mask_BTS = None
        elif target_segment_ids_BT is None:
            memory_mask_BTS = (source_segment_ids_BS == 1)[:, None]
        else:
            memory_mask_BTS = same_segment(target_segment_ids_BT, source_segment_ids_BS)
        return self.decode(target_BT, target_segment_ids_BT, None, memory_BSD, memory_mask_BTS, train)

    def extend(
        self, tokens_BT: jax.Array, segment_ids_BT: jax.Array | None, cache: Cache
    ) -> tuple[jax.Array, Cache]:
        """Returns the logits after the last token of each row, shape B × V, and the cache with the tokens.

        Args:
          tokens_BT: next tokens that the decoder reads. The first of a row is the one that starts every
            sequence.
          segment_ids_BT: 0 for padding. `None` means no padding.
          cache: cache that `fill_memory` or `extend` returned.
        """
        return self.decode(tokens_BT, segment_ids_BT, cache)

    def fill_memory(self, cache: Cache, source_BS: jax.Array, mask_BS: jax.Array) -> Cache:
        """Returns the cache with the keys and values of the encoder's outputs for each layer of the decoder.

        Args:
          cache: cache that `empty_cache` returned.
          source_BS: tokens of the source, integers.
          mask_BS: True for tokens, False for padding.
        """
        mask_BS = mask_BS > 0
        memory_BSD = self.encode(source_BS, mask_BS)
        # Keys and values of the memory do not depend on what the decoder reads: one arbitrary token.
        context = Context(memory_BSD=memory_BSD, memory_mask_BTS=mask_BS[:, None])
        _, memory = self.decoder_layers(memory_BSD[:, :1], context, cache)
        return cache.replace(memory=memory, memory_mask_BS=mask_BS)  # type: ignore[attr-defined]
