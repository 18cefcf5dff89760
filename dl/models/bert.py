"""BERT, a Transformer encoder with learned or rotary positions, and its head for masked tokens.

Shapes: B batch, T tokens, D model dim, V vocabulary.
"""

import functools
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from dl.models.blocks.attention import Attention
from dl.models.blocks.feed_forward import FeedForward
from dl.models.blocks.layer import Stack, TransformerLayer
from dl.models.blocks.partition import layer_rules, vocabulary_rules
from dl.models.blocks.positions import Rotary
from dl.models.blocks.sequences import pool, read_sequences
from dl.models.dropout import Dropout
from dl.sharding import Rules
from dl.types import Remat

GELU = functools.partial(nn.gelu, approximate=False)


class BERT(nn.Module):
    """An encoder with learned positions and norms after the sums; both can be changed.

    With the head of `dl.models.transfer`, `WithHead(bert_base(pooling="first"), num_classes)` classifies
    texts, and `WithHead(bert_base(), num_classes)` classifies tokens.

    The parameters are `token_embedding`, `position_embedding`, `type_embedding`, `embedding_norm`,
    `layers/layer0`, …, for the pooling `first`, `pooler`, and, for norms before the branches, `final_norm`.

    Source: Devlin et al. 2019, section 3. Rotary positions and norms before the branches: Warner et al. 2024
    (ModernBERT, arXiv:2412.13663), section 2.1.

    Attributes:
      vocab_size: number of tokens, V.
      max_length: largest number of tokens in a sequence.
      dim: model dim, D.
      num_layers: number of layers.
      num_heads: number of heads; it must divide D.
      hidden_dim: width of the feed-forward networks. `None` means 4·D.
      num_token_types: number of types of tokens; BERT tells two sentences apart by type.
      pooling: what is returned. `None`: one vector for each token. `first`: one vector for each row, a dense
        layer with tanh of the first token. `mean`: the mean over the tokens of the row that are not padding.
      dropout: probability that a value of the embeddings, a branch or the attention weights is dropped.
      epsilon: number that is added to the variance in each norm.
      rotary: rotary positions of queries and keys, in place of learned positions. They depend on distances
        only, so a small model needs far less text to learn what a neighbour is. `None` means learned ones.
      is_norm_first: whether a norm is applied to the input of each branch, and to the outputs of the last
        layer, instead of to the sums.
      is_scanned: whether the layers are one loop of the compiled program; see `blocks.layer.Stack`.
      remat: what is computed again in the backward pass; see `dl.models.rematerialization`.
      implementation: kernel of the attention; see `blocks.attention.Attention`.
      dtype: dtype of the computation; parameters stay float32. `None` means that of the parameters.
    """

    vocab_size: int = 30_522
    max_length: int = 512
    dim: int = 768
    num_layers: int = 12
    num_heads: int = 12
    hidden_dim: int | None = None
    num_token_types: int = 2
    pooling: Literal["first", "mean"] | None = None
    dropout: float = 0.0
    epsilon: float = 1e-12
    rotary: Rotary | None = None
    is_norm_first: bool = False
    is_scanned: bool = False
    remat: Remat = "none"
    implementation: Any = None
    dtype: Any = None

    def setup(self) -> None:
        init = nn.initializers.normal(0.02)
        embed = functools.partial(nn.Embed, features=self.dim, embedding_init=init, dtype=self.dtype)
        norm = functools.partial(nn.LayerNorm, self.epsilon, dtype=self.dtype)
        layer = functools.partial(
            TransformerLayer,
            attention=functools.partial(
                Attention,
                self.num_heads,
                rotary=self.rotary,
                dropout=self.dropout,
                kernel_init=init,
                implementation=self.implementation,
                dtype=self.dtype,
            ),
            feed_forward=functools.partial(
                FeedForward,
                self.hidden_dim or 4 * self.dim,
                activation=GELU,
                kernel_init=init,
                dtype=self.dtype,
            ),
            norm=norm,
            is_norm_first=self.is_norm_first,
            dropout=self.dropout,
        )
        self.token_embedding = embed(self.vocab_size)
        if self.rotary is None:
            self.position_embedding = embed(self.max_length)
        self.type_embedding = embed(self.num_token_types)
        self.embedding_norm = norm()
        if self.is_norm_first:
            self.final_norm = norm()
        self.drop = Dropout(self.dropout)
        self.layers = Stack(layer, self.num_layers, self.is_scanned, self.remat)
        if self.pooling == "first":
            self.pooler = nn.Dense(self.dim, kernel_init=init, dtype=self.dtype)

    def __call__(
        self,
        tokens_BT: jax.Array,
        segment_ids_BT: jax.Array | None = None,
        positions_BT: jax.Array | None = None,
        token_types_BT: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Returns one vector for each token, shape B × T × D, or for each row, shape B × D; see `pooling`.

        Args:
          tokens_BT: tokens, integers.
          segment_ids_BT: number of the sequence that each token belongs to; 0 is padding. Tokens attend only
            to their own sequence. `None` means one sequence without padding in each row.
          positions_BT: position of each token. `None` means its position in its sequence.
          token_types_BT: type of each token. `None` means 0 everywhere.
          train: whether dropout is on.

        Raises:
          UserError: the sequence is longer than `max_length`.
        """

        def embed(tokens_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
            types_BT = jnp.zeros_like(tokens_BT) if token_types_BT is None else token_types_BT
            sum_BTD = self.token_embedding(tokens_BT) + self.type_embedding(types_BT)
            if self.rotary is None:
                sum_BTD += self.position_embedding(positions_BT)
            return self.drop(self.embedding_norm(sum_BTD), deterministic=not train)

        x_BTD = read_sequences(
            tokens_BT,
            segment_ids_BT,
            positions_BT,
            embed=embed,
            stack=self.layers,
            max_length=self.max_length,
            train=train,
        )
        if self.is_norm_first:
            x_BTD = self.final_norm(x_BTD)
        if self.pooling == "first":
            return jnp.tanh(self.pooler(x_BTD[:, 0]))
        if self.pooling == "mean":
            return pool(x_BTD, segment_ids_BT, "mean")
        return x_BTD

    @property
    def sharding_rules(self) -> Rules:
        """The partition of the parameters over the axis `tensor`."""
        return (*layer_rules(self.is_scanned, has_biases=True), *vocabulary_rules())

    def attend(self, x_BTD: jax.Array) -> jax.Array:
        """Returns the products of vectors with the embedding of each token, shape B × T × V."""
        return self.token_embedding.attend(x_BTD)


class BERTForMaskedLM(nn.Module):
    """BERT with a head that predicts tokens from the tokens on both sides.

    The head is a dense layer with GELU, a norm, and the matrix of the embeddings with a bias. Its parameters
    are `transform`, `norm` and `bias`; those of the encoder lie in `encoder`.

    Attributes:
      encoder: BERT without pooling.
    """

    encoder: BERT

    @property
    def sharding_rules(self) -> Rules:
        """The partition of the parameters over the axis `tensor`."""
        return self.encoder.sharding_rules

    @nn.compact
    def __call__(
        self,
        tokens_BT: jax.Array,
        segment_ids_BT: jax.Array | None = None,
        positions_BT: jax.Array | None = None,
        token_types_BT: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Returns logits of shape B × T × V. The arguments are those of `BERT`."""
        bert = self.encoder
        if bert.pooling is not None:
            raise ValueError(f"the encoder has pooling={bert.pooling!r}; masked tokens need pooling=None")
        x_BTD = bert(tokens_BT, segment_ids_BT, positions_BT, token_types_BT, train)
        init = nn.initializers.normal(0.02)
        x_BTD = GELU(nn.Dense(bert.dim, kernel_init=init, dtype=bert.dtype, name="transform")(x_BTD))
        logits_BTV = bert.attend(nn.LayerNorm(bert.epsilon, dtype=bert.dtype, name="norm")(x_BTD))
        bias_V = self.param("bias", nn.initializers.zeros, (bert.vocab_size,), jnp.float32)
        return logits_BTV + bias_V[None, None].astype(logits_BTV.dtype)


def bert_tiny(**options: Any) -> BERT:
    """Returns BERT with 2 layers of width 128: 4,369,408 parameters (Turc et al. 2019)."""
    return BERT(**{"dim": 128, "num_layers": 2, "num_heads": 2} | options)


def bert_base(**options: Any) -> BERT:
    """Returns BERT-base: 108,891,648 parameters; 109,482,240 with the pooling `first`."""
    return BERT(**options)


def bert_large(**options: Any) -> BERT:
    """Returns BERT-large: 334,092,288 parameters; 335,141,888 with the pooling `first`."""
    return BERT(**{"dim": 1024, "num_layers": 24, "num_heads": 16} | options)
