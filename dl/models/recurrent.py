"""Recurrent networks: a language model, a classifier of tokens, and a regressor of sequences of numbers.

Shapes: B batch, T steps or tokens, F input features, D state dim, E embedding dim, V vocabulary, N outputs.
"""

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from dl.models.blocks.recurrence import LSTM, Recurrence, RecurrentStack, State
from dl.models.blocks.sequences import pool
from dl.models.dropout import Dropout

Pooling = Literal["final", "max", "mean"]
"""How a sequence becomes one vector: the last h of each direction, or the maximum or mean of all outputs."""


class RecurrentLanguageModel(nn.Module):
    """A causal language model of recurrent layers.

    Its parameters are `token_embedding`, `layers/layer0`, … and `head`. Dropout is variational: one mask for
    all steps of a row, for the inputs of each layer and of the head, and for the recurrent connections.

    Source: Zaremba et al. 2014; Gal & Ghahramani 2016, section 4. Tied embeddings: Press & Wolf 2017.

    Attributes:
      vocab_size: number of tokens, V.
      layer: makes a layer: `LSTM`, `GRU` or `RNN`, or a `functools.partial` of one.
      dim: state dim, D.
      num_layers: number of layers.
      embedding_dim: E. `None` means D.
      dropout: probability that a feature of the input of a layer or of the head is dropped in training.
      recurrent_dropout: probability that a value of a recurrent connection is dropped in training.
      is_tied: whether the kernel of the head is the table of embeddings. E must then equal D.
      dtype: dtype of the computation; parameters stay float32. `None` means that of the parameters.
    """

    vocab_size: int
    layer: Callable[..., Recurrence] = LSTM
    dim: int = 512
    num_layers: int = 2
    embedding_dim: int | None = None
    dropout: float = 0.0
    recurrent_dropout: float = 0.0
    is_tied: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        tokens_BT: jax.Array,
        segment_ids_BT: jax.Array | None = None,
        positions_BT: jax.Array | None = None,
        cache: tuple[State, ...] | None = None,
        train: bool = False,
    ) -> Any:
        """Returns logits of shape B × T × V.

        With a cache it returns a pair: the logits after the last token of each row, shape B × V, and the
        cache after the new tokens. The segment ids then only say which tokens are padding (0). Padding may
        lie before or after the tokens of a row.

        Args:
          tokens_BT: tokens, integers.
          segment_ids_BT: number of the sequence that each token belongs to; 0 is padding. Each sequence
            starts with an empty state. `None` means one sequence without padding in each row.
          positions_BT: not used; a recurrent network needs no positions.
          cache: states after the tokens before `tokens_BT`.
          train: whether dropout is on.

        Raises:
          ValueError: the embeddings are tied and E differs from D.
        """
        if self.is_tied and self.embedding_dim not in (None, self.dim):
            raise ValueError(
                f"embedding_dim={self.embedding_dim} differs from dim={self.dim}; tied embeddings need the "
                "same number"
            )
        embed = nn.Embed(
            self.vocab_size, self.embedding_dim or self.dim, dtype=self.dtype, name="token_embedding"
        )
        layers = RecurrentStack(
            self.layer,
            self.dim,
            self.num_layers,
            dropout=self.dropout,
            recurrent_dropout=self.recurrent_dropout,
            dtype=self.dtype,
            name="layers",
        )
        head = nn.Dense(self.vocab_size, dtype=self.dtype, name="head")
        unembed = embed.attend if self.is_tied else head
        if cache is None:
            x_BTD, _ = layers(embed(tokens_BT), segment_ids_BT, train=train)
            return unembed(Dropout(self.dropout, broadcast_dims=(1,), deterministic=not train)(x_BTD))
        is_valid_BT = None if segment_ids_BT is None else jnp.int32(segment_ids_BT > 0)
        _, cache = layers(embed(tokens_BT), is_valid_BT, cache, train)
        return unembed(cache[-1][0]), cache  # padding has not changed the state of the last layer

    def empty_cache(self, batch_size: int, length: int) -> tuple[State, ...]:
        """Returns the empty cache of `batch_size` rows. Its size does not depend on `length`."""
        layer = self.layer(dim=self.dim, parent=None)
        return tuple(layer.empty_state(batch_size, self.dtype or jnp.float32) for _ in range(self.num_layers))


class SequenceReader(nn.Module):
    """What the regressor and the classifier share: recurrent layers, a vector of the sequence, a dense head.

    Their parameters are `layers/layer0`, … and `head`.

    Attributes:
      layer: makes a layer: `LSTM`, `GRU` or `RNN`, or a `functools.partial` of one.
      dim: state dim of each direction, D.
      num_layers: number of layers.
      is_bidirectional: whether each layer reads its input in both directions.
      pooling: how a sequence becomes one vector; see `Pooling`.
      dropout: probability that a feature of the input of a layer or of the head is dropped in training.
      recurrent_dropout: probability that a value of a recurrent connection is dropped in training.
      dtype: dtype of the computation; parameters stay float32. `None` means that of inputs and parameters.
    """

    layer: Callable[..., Recurrence] = LSTM
    dim: int = 64
    num_layers: int = 1
    is_bidirectional: bool = False
    pooling: Pooling = "final"
    dropout: float = 0.0
    recurrent_dropout: float = 0.0
    dtype: Any = None

    def read(
        self, x_BTF: jax.Array, segment_ids_BT: jax.Array | None, num_outputs: int, train: bool
    ) -> jax.Array:
        """Returns outputs of shape B × N for sequences of vectors; called by `__call__`."""
        layers = RecurrentStack(
            self.layer,
            self.dim,
            self.num_layers,
            self.is_bidirectional,
            self.dropout,
            self.recurrent_dropout,
            self.dtype,
            name="layers",
        )
        outputs_BTD, states = layers(x_BTF, segment_ids_BT, train=train)
        if self.pooling == "final":
            last = states[-1 - self.is_bidirectional :]
            pooled_BD = jnp.concatenate([state[0] for state in last], -1)
        else:
            pooled_BD = pool(outputs_BTD, segment_ids_BT, self.pooling)
        pooled_BD = Dropout(self.dropout, deterministic=not train)(pooled_BD)
        return nn.Dense(num_outputs, dtype=self.dtype, name="head")(pooled_BD)


class RecurrentRegressor(SequenceReader, kw_only=True):
    """A network that reads a sequence of vectors and returns N numbers; see `SequenceReader`.

    Attributes:
      num_outputs: number of outputs, N.
    """

    num_outputs: int

    @nn.compact
    def __call__(
        self, x_BTF: jax.Array, segment_ids_BT: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """Returns outputs of shape B × N.

        Args:
          x_BTF: inputs.
          segment_ids_BT: positive for the steps of the sequence, 0 for padding. `None` means no padding.
          train: whether dropout is on.
        """
        return self.read(x_BTF, segment_ids_BT, self.num_outputs, train)


class RecurrentClassifier(SequenceReader, kw_only=True):
    """A network that reads tokens and returns the logits of N classes; see `SequenceReader`.

    Its table of embeddings is `token_embedding`.

    Attributes:
      num_classes: number of classes, N.
      vocab_size: number of tokens, V.
      embedding_dim: E.
      token_dropout: probability that the whole embedding of a token is dropped in training.
    """

    num_classes: int
    vocab_size: int
    embedding_dim: int = 64
    token_dropout: float = 0.0

    @nn.compact
    def __call__(
        self, tokens_BT: jax.Array, segment_ids_BT: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """Returns logits of shape B × N.

        Args:
          tokens_BT: tokens, integers.
          segment_ids_BT: positive for tokens, 0 for padding. `None` means no padding.
          train: whether dropout is on.
        """
        embed = nn.Embed(self.vocab_size, self.embedding_dim, dtype=self.dtype, name="token_embedding")
        drop = Dropout(self.token_dropout, broadcast_dims=(2,), deterministic=not train)
        return self.read(drop(embed(tokens_BT)), segment_ids_BT, self.num_classes, train)
