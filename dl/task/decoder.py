"""The contract of decoding: pure functions with which a model writes sequences token by token."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from dl.types import Variables

Cache = Any
"""What a decoder remembers of the tokens that it has read: arrays whose shapes and dtypes never change."""


class Decoder(NamedTuple):
    """The functions that write a sequence token by token.

    Shapes: B rows, T new tokens, S tokens of an encoder's input, V vocabulary.

    Attributes:
      empty: function from the number of rows and the largest number of tokens in a row to an empty cache.
      extend: function from the variables, a cache, new tokens (integers, B × T) and which of them are not
        padding (bool, B × T) to the logits after the last token of each row, shape B × V, and the cache with
        the new tokens. Padding may lie before or after the tokens of a row. The logits of a row without new
        tokens have no meaning.
      encode: function from the variables, an empty cache, the input of an encoder (integers, B × S) and which
        of it is not padding (bool, B × S) to a cache that holds the encoder's outputs. `None` for a model
        without an encoder.
    """

    empty: Callable[[int, int], Cache]
    extend: Callable[[Variables, Cache, jax.Array, jax.Array], tuple[jax.Array, Cache]]
    encode: Callable[[Variables, Cache, jax.Array, jax.Array], Cache] | None = None
