"""The forward pass over whole sequences that encoders and decoders share.

Shapes: B batch, T tokens, S keys, D model dim, N heads.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from dl.errors import UserError
from dl.models.blocks.layer import Context, Stack
from dl.models.blocks.positions import positions_in_segments


def read_sequences(
    tokens_BT: jax.Array,
    segment_ids_BT: jax.Array | None,
    positions_BT: jax.Array | None = None,
    *,
    embed: Callable[[jax.Array, jax.Array], jax.Array],
    stack: Stack,
    max_length: int | None = None,
    bias: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    memory_BSD: jax.Array | None = None,
    memory_mask_BTS: jax.Array | None = None,
    train: bool = False,
) -> jax.Array:
    """Returns the outputs of a stack of layers, shape B × T × D.

    Args:
      tokens_BT: tokens.
      segment_ids_BT: number of the sequence of each token; 0 is padding. `None` means one sequence a row.
      positions_BT: position of each token. `None` means its position in its sequence.
      embed: function from tokens and positions to the input of the stack.
      stack: the layers.
      max_length: largest number of tokens in a sequence. `None` means no limit.
      bias: function from the positions of queries and keys to the bias of the attention, B × N × T × S.
      memory_BSD: outputs of an encoder, for layers that attend to them.
      memory_mask_BTS: True where a token may attend to an output of the encoder.
      train: whether dropout is on.

    Raises:
      UserError: the sequence is longer than `max_length`.
    """
    check_length(tokens_BT.shape[1], max_length)
    if positions_BT is None and segment_ids_BT is not None:
        positions_BT = positions_in_segments(segment_ids_BT)
    elif positions_BT is None:
        positions_BT = jnp.arange(tokens_BT.shape[1])[None]
    context = Context(
        mask_BTS=None if segment_ids_BT is None else same_segment(segment_ids_BT, segment_ids_BT),
        bias_BNTS=None if bias is None else bias(positions_BT, positions_BT),
        positions_BT=positions_BT,
        memory_BSD=memory_BSD,
        memory_mask_BTS=memory_mask_BTS,
    )
    return stack(embed(tokens_BT, positions_BT), context, None, train)[0]


def same_segment(segment_ids_BT: jax.Array, segment_ids_BS: jax.Array) -> jax.Array:
    """Returns which pairs of a query and a key belong to the same segment, bool, shape B × T × S."""
    return segment_ids_BT[:, :, None] == segment_ids_BS[:, None]


def check_length(length: int, max_length: int | None) -> None:
    """Raises UserError for a sequence that is longer than a model can read."""
    if max_length is not None and length > max_length:
        raise UserError(
            f"a sequence of {length} tokens is longer than the {max_length} that the model can read; use a "
            f"sequence length of at most {max_length}"
        )


def pool(x_BTD: jax.Array, segment_ids_BT: jax.Array | None, pooling: Literal["max", "mean"]) -> jax.Array:
    """Returns the maximum or the mean over the tokens that are not padding, shape B × D.

    The mean is summed in float32. A row of padding alone, as at the end of the last batch of an evaluation,
    has the value 0.
    """
    if segment_ids_BT is None:
        segment_ids_BT = jnp.ones(x_BTD.shape[:2], jnp.int32)
    is_valid_BT1 = segment_ids_BT[..., None] > 0
    if pooling == "max":
        largest_BD = jnp.max(x_BTD, axis=1, where=is_valid_BT1, initial=jnp.finfo(x_BTD.dtype).min)
        return jnp.where(is_valid_BT1.any(1), largest_BD, 0)
    count_B1 = jnp.maximum(is_valid_BT1.sum(1), 1)
    return (x_BTD.sum(1, where=is_valid_BT1, dtype=jnp.float32) / count_B1).astype(x_BTD.dtype)
