"""T5, a Transformer encoder and decoder with relative positions.

Shapes: B batch, S tokens of the source, T tokens of the target, D model dim, H head dim, V vocabulary.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from dl.models.blocks.attention import Attention
from dl.models.blocks.cache import Cache
from dl.models.blocks.decoder import decode
from dl.models.blocks.encoder_decoder import EncoderDecoder
from dl.models.blocks.feed_forward import FeedForward
from dl.models.blocks.layer import Stack, TransformerLayer
from dl.models.blocks.partition import layer_rules, vocabulary_rules
from dl.models.blocks.positions import RelativeBias
from dl.models.blocks.sequences import read_sequences
from dl.models.dropout import Dropout
from dl.sharding import Rule, Rules
from dl.types import Remat


class T5(EncoderDecoder):
    """An encoder-decoder without biases, with norms before the branches; called as `EncoderDecoder` says.

    All layers of the encoder share one relative bias of the attention, and so do those of the decoder. The
    attention logits are not scaled. Instead the initial queries are small.

    The parameters are `token_embedding`, `encoder_bias`, `encoder_layers/layer0`, …, `encoder_norm`, the same
    of the decoder and, if it is not tied to the embeddings, `head`.

    Source: Raffel et al. 2020, section 2.1. Version 1.1, with `is_gated` and without `is_tied`: Shazeer 2020,
    and the checkpoints of Chung et al. 2022 (Flan-T5).

    Attributes:
      vocab_size: number of tokens, V.
      dim: model dim, D.
      num_layers: number of layers of the encoder, and of the decoder.
      num_heads: number of heads.
      head_dim: width of a head, H. `None` means D / `num_heads`.
      hidden_dim: width of the feed-forward networks. `None` means 4·D.
      is_gated: whether the feed-forward networks have a gate with GELU, in place of ReLU without a gate.
      is_tied: whether the head is the matrix of the embeddings, times D^-0.5.
      num_buckets: number of distances that the relative biases distinguish.
      max_distance: distance from which on the relative biases are the same.
      dropout: probability that a value of the embeddings, a branch, the attention weights, a hidden layer or
        the outputs is dropped.
      epsilon: number that is added to the mean square in each norm.
      is_scanned: whether the layers are one loop of the compiled program; see `blocks.layer.Stack`.
      remat: what is computed again in the backward pass; see `dl.models.rematerialization`.
      implementation: kernel of the attention; see `blocks.attention.Attention`.
      dtype: dtype of the computation; parameters stay float32. `None` means that of the parameters.
    """

    vocab_size: int = 32_128
    dim: int = 512
    num_layers: int = 6
    num_heads: int = 8
    head_dim: int | None = None
    hidden_dim: int | None = None
    is_gated: bool = False
    is_tied: bool = True
    num_buckets: int = 32
    max_distance: int = 128
    dropout: float = 0.0
    epsilon: float = 1e-6
    is_scanned: bool = False
    remat: Remat = "none"
    implementation: Any = None
    dtype: Any = None

    def setup(self) -> None:
        normal = nn.initializers.normal(1.0)
        norm = functools.partial(nn.RMSNorm, self.epsilon, dtype=self.dtype)
        bias = functools.partial(RelativeBias, self.num_heads, self.num_buckets, self.max_distance)
        self.token_embedding = nn.Embed(self.vocab_size, self.dim, embedding_init=normal, dtype=self.dtype)
        self.encoder_bias, self.encoder_norm = bias(), norm()
        self.encoder_layers = self._layers(is_causal=False)
        self.decoder_bias, self.decoder_norm = bias(is_causal=True), norm()
        self.decoder_layers = self._layers(is_causal=True)
        self.drop = Dropout(self.dropout)
        if not self.is_tied:
            self.head = nn.Dense(self.vocab_size, use_bias=False, dtype=self.dtype)

    def _layers(self, is_causal: bool) -> Stack:
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
        attention = functools.partial(
            Attention,
            self.num_heads,
            head_dim=self.head_dim,
            scale=1.0,
            use_bias=False,
            dropout=self.dropout,
            kernel_init=init,
            query_init=nn.initializers.variance_scaling(1 / self._head_dim, "fan_in", "normal"),
            implementation=self.implementation,
            dtype=self.dtype,
        )
        layer = functools.partial(
            TransformerLayer,
            attention=functools.partial(attention, is_causal=is_causal),
            cross_attention=attention if is_causal else None,
            feed_forward=functools.partial(
                FeedForward,
                self.hidden_dim or 4 * self.dim,
                activation=nn.gelu if self.is_gated else nn.relu,
                is_gated=self.is_gated,
                use_bias=False,
                dropout=self.dropout,
                kernel_init=init,
                dtype=self.dtype,
            ),
            norm=functools.partial(nn.RMSNorm, self.epsilon, dtype=self.dtype),
            dropout=self.dropout,
        )
        return Stack(layer, self.num_layers, self.is_scanned, self.remat)

    @property
    def _head_dim(self) -> int:
        return self.head_dim or self.dim // self.num_heads

    def encode(
        self, source_BS: jax.Array, segment_ids_BS: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        x_BSD = read_sequences(
            source_BS,
            segment_ids_BS,
            embed=lambda tokens, _: self._embed(tokens, train),
            stack=self.encoder_layers,
            bias=self.encoder_bias,
            train=train,
        )
        return self.drop(self.encoder_norm(x_BSD), deterministic=not train)

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
            embed=lambda tokens, _: self._embed(tokens, train),
            stack=self.decoder_layers,
            unembed=lambda x_BTD: self._unembed(x_BTD, train),
            bias=self.decoder_bias,
            memory_BSD=memory_BSD,
            memory_mask_BTS=memory_mask_BTS,
            train=train,
        )

    def _embed(self, tokens_BT: jax.Array, train: bool) -> jax.Array:
        return self.drop(self.token_embedding(tokens_BT), deterministic=not train)

    def _unembed(self, x_BTD: jax.Array, train: bool) -> jax.Array:
        x_BTD = self.drop(self.decoder_norm(x_BTD), deterministic=not train)
        return self.token_embedding.attend(x_BTD * self.dim**-0.5) if self.is_tied else self.head(x_BTD)

    @property
    def sharding_rules(self) -> Rules:
        """The partition of the parameters over the axis `tensor`."""
        return (
            *layer_rules(self.is_scanned, has_biases=False),
            *vocabulary_rules(self.is_tied),
            Rule("(encoder|decoder)_bias/embedding$", PartitionSpec(None, "tensor"), where_it_divides=True),
        )

    def empty_cache(self, batch_size: int, length: int) -> Cache:
        """Returns the empty cache of `batch_size` rows of at most `length` tokens of the target."""
        return Cache.empty(
            self.num_layers,
            batch_size,
            length,
            self.num_heads,
            self._head_dim,
            dtype=self.dtype or jnp.float32,
            is_scanned=self.is_scanned,
        )


def t5_small(**options: Any) -> T5:
    """Returns T5 small: 60,506,624 parameters."""
    return T5(**options)


def t5_base(**options: Any) -> T5:
    """Returns T5 base: 222,903,552 parameters."""
    return T5(**{"dim": 768, "num_layers": 12, "num_heads": 12} | options)


def t5_v1_1_small(**options: Any) -> T5:
    """Returns T5 1.1 small, the network of Flan-T5 small: 76,961,152 parameters."""
    sizes = {"num_layers": 8, "num_heads": 6, "head_dim": 64, "hidden_dim": 1024}
    return T5(**{"is_gated": True, "is_tied": False} | sizes | options)


def t5_v1_1_base(**options: Any) -> T5:
    """Returns T5 1.1 base, the network of Flan-T5 base: 247,577,856 parameters."""
    sizes = {"dim": 768, "num_layers": 12, "num_heads": 12, "hidden_dim": 2048}
    return T5(**{"is_gated": True, "is_tied": False} | sizes | options)
