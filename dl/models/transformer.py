"""The Transformer for translation: an encoder and a decoder with sinusoidal positions.

Shapes: B batch, S tokens of the source, T tokens of the target, D model dim, V vocabulary.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dl.models.blocks.attention import Attention
from dl.models.blocks.cache import Cache
from dl.models.blocks.decoder import decode
from dl.models.blocks.encoder_decoder import EncoderDecoder
from dl.models.blocks.feed_forward import FeedForward
from dl.models.blocks.layer import Stack, TransformerLayer
from dl.models.blocks.partition import layer_rules, vocabulary_rules
from dl.models.blocks.positions import sinusoidal
from dl.models.blocks.sequences import read_sequences
from dl.models.dropout import Dropout
from dl.sharding import Rules
from dl.types import Remat


class Transformer(EncoderDecoder):
    """The encoder-decoder of Vaswani et al. (2017, section 3), called as `EncoderDecoder` says.

    Source, target and output share one matrix of embeddings, which is multiplied by √D where it embeds
    tokens. The parameters are `token_embedding`, `encoder_layers/layer0`, …, `decoder_layers/layer0`, … and,
    with norms before the branches, `encoder_norm` and `decoder_norm`.

    Attributes:
      vocab_size: number of tokens of both languages together, V.
      dim: model dim, D.
      num_layers: number of layers of the encoder, and of the decoder.
      num_heads: number of heads; it must divide D.
      hidden_dim: width of the feed-forward networks. `None` means 4·D.
      max_length: largest number of tokens in a sequence.
      is_norm_first: whether a norm is applied to the input of each branch, and once after the last layer,
        instead of to the sums (Xiong et al. 2020). The training then needs no warm-up.
      dropout: probability that a value of the embeddings or a branch is dropped.
      attention_dropout: probability that an attention weight is dropped.
      epsilon: number that is added to the variance in each norm.
      is_scanned: whether the layers are one loop of the compiled program; see `blocks.layer.Stack`.
      remat: what is computed again in the backward pass; see `dl.models.rematerialization`.
      implementation: kernel of the attention; see `blocks.attention.Attention`.
      dtype: dtype of the computation; parameters stay float32. `None` means that of the parameters.
    """

    vocab_size: int
    dim: int = 512
    num_layers: int = 6
    num_heads: int = 8
    hidden_dim: int | None = None
    max_length: int = 1024
    is_norm_first: bool = False
    dropout: float = 0.0
    attention_dropout: float = 0.0
    epsilon: float = 1e-6
    is_scanned: bool = False
    remat: Remat = "none"
    implementation: Any = None
    dtype: Any = None

    def setup(self) -> None:
        self.token_embedding = nn.Embed(
            self.vocab_size,
            self.dim,
            embedding_init=nn.initializers.normal(self.dim**-0.5),
            dtype=self.dtype,
        )
        self.encoder_layers = self._layers(is_causal=False)
        self.decoder_layers = self._layers(is_causal=True)
        self.drop = Dropout(self.dropout)
        if self.is_norm_first:
            self.encoder_norm, self.decoder_norm = self._norm(), self._norm()
        self.positions = sinusoidal(self.max_length, self.dim)

    @property
    def _norm(self) -> functools.partial[nn.LayerNorm]:
        return functools.partial(nn.LayerNorm, self.epsilon, dtype=self.dtype)

    def _layers(self, is_causal: bool) -> Stack:
        attention = functools.partial(
            Attention,
            self.num_heads,
            dropout=self.attention_dropout,
            implementation=self.implementation,
            dtype=self.dtype,
        )
        layer = functools.partial(
            TransformerLayer,
            attention=functools.partial(attention, is_causal=is_causal),
            cross_attention=attention if is_causal else None,
            feed_forward=functools.partial(
                FeedForward, self.hidden_dim or 4 * self.dim, activation=nn.relu, dtype=self.dtype
            ),
            norm=self._norm,
            is_norm_first=self.is_norm_first,
            dropout=self.dropout,
        )
        return Stack(layer, self.num_layers, self.is_scanned, self.remat)

    def encode(
        self, source_BS: jax.Array, segment_ids_BS: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        x_BSD = read_sequences(
            source_BS,
            segment_ids_BS,
            embed=lambda tokens, where: self._embed(tokens, where, train),
            stack=self.encoder_layers,
            max_length=self.max_length,
            train=train,
        )
        return self.encoder_norm(x_BSD) if self.is_norm_first else x_BSD

    def decode(
        self,
        target_BT: jax.Array,
        segment_ids_BT: jax.Array | None = None,
        cache: Cache | None = None,
        memory_BSD: jax.Array | None = None,
        memory_mask_BTS: jax.Array | None = None,
        train: bool = False,
    ) -> Any:
        return decode(
            target_BT,
            segment_ids_BT,
            None,
            cache,
            embed=lambda tokens, where: self._embed(tokens, where, train),
            stack=self.decoder_layers,
            unembed=self._unembed,
            max_length=self.max_length,
            memory_BSD=memory_BSD,
            memory_mask_BTS=memory_mask_BTS,
            train=train,
        )

    def _embed(self, tokens_BT: jax.Array, positions_BT: jax.Array, train: bool) -> jax.Array:
        x_BTD = self.token_embedding(tokens_BT) * self.dim**0.5
        x_BTD += jnp.asarray(self.positions, x_BTD.dtype)[positions_BT]
        return self.drop(x_BTD, deterministic=not train)

    def _unembed(self, x_BTD: jax.Array) -> jax.Array:
        return self.token_embedding.attend(self.decoder_norm(x_BTD) if self.is_norm_first else x_BTD)

    @property
    def sharding_rules(self) -> Rules:
        """The partition of the parameters over the axis `tensor`."""
        return (*layer_rules(self.is_scanned, has_biases=True), *vocabulary_rules())

    def empty_cache(self, batch_size: int, length: int) -> Cache:
        """Returns the empty cache of `batch_size` rows of at most `length` tokens of the target."""
        return Cache.empty(
            self.num_layers,
            batch_size,
            length,
            self.num_heads,
            self.dim // self.num_heads,
            dtype=self.dtype or jnp.float32,
            is_scanned=self.is_scanned,
        )


def transformer_base(vocab_size: int = 37_000, **options: Any) -> Transformer:
    """Returns the base model of Vaswani et al. (2017, table 3), without dropout unless it is given."""
    return Transformer(vocab_size, **options)
