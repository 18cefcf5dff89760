"""The forward pass that all causal decoders share: whole sequences, or new tokens after those in a cache.

Shapes: B batch, T tokens, S slots of the cache, D model dim, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dl.models.blocks.cache import Cache, last_valid
from dl.models.blocks.layer import Context, Stack
from dl.models.blocks.sequences import check_length, read_sequences


def decode(
    tokens_BT: jax.Array,
    segment_ids_BT: jax.Array | None,
    positions_BT: jax.Array | None,
    cache: Cache | None,
    *,
    embed: Callable[[jax.Array, jax.Array], jax.Array],
    stack: Stack,
    unembed: Callable[[jax.Array], jax.Array],
    max_length: int | None = None,
    bias: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    memory_BSD: jax.Array | None = None,
    memory_mask_BTS: jax.Array | None = None,
    train: bool = False,
) -> Any:
    """Returns the logits of a causal decoder.

    Without a cache it returns logits of shape B × T × V. With a cache it returns a pair: the logits after
    the last token of each row, shape B × V, and the cache with the new tokens. The segment ids then only say
    which tokens are padding (0). Padding may lie before or after the tokens of a row. A token that finds no
    free slot is lost, so the cache must be long enough.

    Args:
      tokens_BT: tokens, or the new tokens.
      segment_ids_BT: number of the sequence of each token; 0 is padding. `None` means one sequence a row.
      positions_BT: position of each token. `None` means its position in its sequence. With a cache it must be
        `None`: the cache knows the positions.
      cache: cache of the tokens before.
      embed: function from tokens and positions to the input of the stack.
      stack: the layers.
      unembed: function from the output of the stack to logits.
      max_length: largest number of tokens in a sequence. `None` means no limit.
      bias: function from the positions of queries and keys to the bias of the attention, B × N × T × S.
      memory_BSD: outputs of an encoder, if they are not in the cache.
      memory_mask_BTS: True where a token may attend to an output of the encoder.
      train: whether dropout is on.

    Raises:
      UserError: the sequence is longer than `max_length`.
    """
    if cache is None:
        x_BTD = read_sequences(
            tokens_BT,
            segment_ids_BT,
            positions_BT,
            embed=embed,
            stack=stack,
            max_length=max_length,
            bias=bias,
            memory_BSD=memory_BSD,
            memory_mask_BTS=memory_mask_BTS,
            train=train,
        )
        return unembed(x_BTD)
    if positions_BT is not None:
        raise ValueError("positions_BT is given with a cache, which knows the positions; leave it out")
    check_length(cache.num_slots, max_length)
    is_valid_BT = jnp.ones(tokens_BT.shape, bool) if segment_ids_BT is None else segment_ids_BT > 0
    positions_BT, slots_BT = cache.slots(is_valid_BT)
    slot_BS = jnp.arange(cache.num_slots)[None]
    memory_mask_BS = cache.memory_mask_BS
    context = Context(
        # A token in slot p attends to the slots 0, …, p. The later ones hold padding or nothing.
        mask_BTS=slot_BS[:, None] <= positions_BT[:, :, None],
        bias_BNTS=None if bias is None else bias(positions_BT, slot_BS),
        positions_BT=positions_BT,
        slots_BT=slots_BT,
        memory_mask_BTS=None if memory_mask_BS is None else memory_mask_BS[:, None],
    )
    x_BTD, layers = stack(embed(tokens_BT, positions_BT), context, cache, train)
    logits_B1V = unembed(last_valid(x_BTD, is_valid_BT))
    return logits_B1V[:, 0], cache.extended(layers, is_valid_BT)
