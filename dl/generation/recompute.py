"""A decoder of any causal model: it reads all tokens of a row again for each new token.

Shapes: R rows, T new tokens, S tokens at most in a row, V tokens of the vocabulary.
"""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from dl.task.decoder import Decoder
from dl.types import Variables


@flax.struct.dataclass
class Tokens:
    """The tokens of each row.

    Attributes:
      tokens_RS: tokens, and padding after them.
      lengths_R: number of tokens of each row.
    """

    tokens_RS: jax.Array
    lengths_R: jax.Array


def decoder_of(
    outputs: Callable[[Variables, jax.Array], jax.Array], padding_id: int | None = None
) -> Decoder:
    """Returns a decoder that needs nothing of a model but its outputs. It takes S times as long as a cache.

    Args:
      outputs: function from variables and tokens, R × S, to logits, R × S × V. The logits at t must not
        depend on later tokens.
      padding_id: token that fills the rows. `None` means 0.
    """

    def empty(num_rows: int, length: int) -> Tokens:
        padding = jnp.full((num_rows, length), padding_id or 0, jnp.int32)
        return Tokens(padding, jnp.zeros(num_rows, jnp.int32))

    def extend(
        variables: Variables, cache: Tokens, tokens_RT: jax.Array, mask_RT: jax.Array
    ) -> tuple[jax.Array, Tokens]:
        rows_R1, length = jnp.arange(len(tokens_RT))[:, None], cache.tokens_RS.shape[1]
        place_RT = cache.lengths_R[:, None] + jnp.cumsum(mask_RT, axis=1, dtype=jnp.int32) - 1
        place_RT = jnp.where(mask_RT, place_RT, length)
        tokens_RS = cache.tokens_RS.at[rows_R1, place_RT].set(tokens_RT, mode="drop")
        lengths_R = cache.lengths_R + mask_RT.sum(axis=1, dtype=jnp.int32)
        logits_RSV = outputs(variables, tokens_RS)
        last_R = jnp.clip(lengths_R - 1, 0, length - 1)
        logits_RV = jnp.take_along_axis(logits_RSV, last_R[:, None, None], axis=1)[:, 0]
        return logits_RV, Tokens(tokens_RS, lengths_R)

    return Decoder(empty, extend)
