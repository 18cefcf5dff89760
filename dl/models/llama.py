"""The decoder of today: RMSNorm, rotary positions, SwiGLU and grouped-query attention, as in Llama.

Shapes: B batch, T tokens, S slots of the cache, D model dim, V vocabulary.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dl.models.blocks.attention import Attention
from dl.models.blocks.cache import Cache
from dl.models.blocks.decoder import decode
from dl.models.blocks.feed_forward import FeedForward
from dl.models.blocks.layer import Stack, TransformerLayer
from dl.models.blocks.partition import layer_rules, vocabulary_rules
from dl.models.blocks.positions import Rotary
from dl.models.dropout import Dropout
from dl.sharding import Rules
from dl.types import Remat


class Llama(nn.Module):
    """A causal language model without biases, with norms before the branches.

    With `num_kv_heads` and without `has_qk_norm` it is the network of Llama 2 and 3, Mistral and others; with
    `has_qk_norm` that of Qwen 3. Its parameters are `token_embedding`, `layers/layer0`, …, `final_norm` and,
    if it is not tied to the embeddings, `head`.

    Source: Touvron et al. 2023, section 2.2.

    Attributes:
      vocab_size: number of tokens, V.
      dim: model dim, D.
      num_layers: number of layers.
      num_heads: number of heads of the queries.
      hidden_dim: width of the feed-forward networks. `None` means 8/3·D, rounded up to a multiple of 32.
      num_kv_heads: number of heads of keys and values. `None` means `num_heads`.
      head_dim: width of a head. `None` means D / `num_heads`.
      has_qk_norm: whether queries and keys are normalised.
      rotary: rotary positions.
      is_tied: whether the head is the matrix of the embeddings.
      dropout: probability that a value of the embeddings or of a branch is dropped. Attention weights are not
        dropped: that takes a random number for each pair of tokens and excludes fused kernels.
      epsilon: number that is added to the mean square in each norm.
      init_scale: standard deviation of the initial matrices.
      is_scanned: whether the layers are one loop of the compiled program; see `blocks.layer.Stack`.
      remat: what is computed again in the backward pass; see `dl.models.rematerialization`.
      implementation: kernel of the attention; see `blocks.attention.Attention`.
      dtype: dtype of the computation; parameters stay float32. `None` means that of the parameters.
    """

    vocab_size: int
    dim: int
    num_layers: int
    num_heads: int
    hidden_dim: int | None = None
    num_kv_heads: int | None = None
    head_dim: int | None = None
    has_qk_norm: bool = False
    rotary: Rotary = Rotary()
    is_tied: bool = False
    dropout: float = 0.0
    epsilon: float = 1e-5
    init_scale: float = 0.02
    is_scanned: bool = False
    remat: Remat = "none"
    implementation: Any = None
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        tokens_BT: jax.Array,
        segment_ids_BT: jax.Array | None = None,
        positions_BT: jax.Array | None = None,
        cache: Cache | None = None,
        train: bool = False,
    ) -> Any:
        """Returns logits of shape B × T × V; with a cache, see `blocks.decoder.decode`.

        Args:
          tokens_BT: tokens, integers.
          segment_ids_BT: number of the sequence that each token belongs to; 0 is padding. Tokens attend only
            to their own sequence. `None` means one sequence without padding in each row.
          positions_BT: position of each token. `None` means its position in its sequence.
          cache: cache of the tokens before `tokens_BT`.
          train: whether dropout is on.
        """
        init = nn.initializers.normal(self.init_scale)
        residual_init = nn.initializers.normal(self.init_scale / (2 * self.num_layers) ** 0.5)
        norm = functools.partial(nn.RMSNorm, self.epsilon, dtype=self.dtype)
        layer = functools.partial(
            TransformerLayer,
            attention=functools.partial(
                Attention,
                self.num_heads,
                self.num_kv_heads,
                self.head_dim,
                is_causal=True,
                rotary=self.rotary,
                has_qk_norm=self.has_qk_norm,
                norm_epsilon=self.epsilon,
                use_bias=False,
                kernel_init=init,
                out_init=residual_init,
                implementation=self.implementation,
                dtype=self.dtype,
            ),
            feed_forward=functools.partial(
                FeedForward,
                self.hidden_width,
                activation=nn.silu,
                is_gated=True,
                use_bias=False,
                kernel_init=init,
                out_init=residual_init,
                dtype=self.dtype,
            ),
            norm=norm,
            dropout=self.dropout,
        )
        embed = nn.Embed(
            self.vocab_size, self.dim, embedding_init=init, dtype=self.dtype, name="token_embedding"
        )

        def unembed(x_BTD: jax.Array) -> jax.Array:
            x_BTD = norm(name="final_norm")(x_BTD)
            if self.is_tied:
                return embed.attend(x_BTD)
            return nn.Dense(self.vocab_size, use_bias=False, kernel_init=init, dtype=self.dtype, name="head")(
                x_BTD
            )

        return decode(
            tokens_BT,
            segment_ids_BT,
            positions_BT,
            cache,
            embed=lambda tokens, where: Dropout(self.dropout, deterministic=not train)(embed(tokens)),
            stack=Stack(layer, self.num_layers, self.is_scanned, self.remat, name="layers"),
            unembed=unembed,
            train=train,
        )

    @property
    def hidden_width(self) -> int:
        """The width of the feed-forward networks."""
        return self.hidden_dim or -(-8 * self.dim // 3 // 32) * 32

    @property
    def sharding_rules(self) -> Rules:
        """The partition of the parameters over the axis `tensor`."""
        return (*layer_rules(self.is_scanned, has_biases=False), *vocabulary_rules(self.is_tied))

    def empty_cache(self, batch_size: int, length: int) -> Cache:
        """Returns the empty cache of `batch_size` rows of at most `length` tokens."""
        return Cache.empty(
            self.num_layers,
            batch_size,
            length,
            self.num_kv_heads or self.num_heads,
            self.head_dim or self.dim // self.num_heads,
            dtype=self.dtype or jnp.float32,
            is_scanned=self.is_scanned,
        )
