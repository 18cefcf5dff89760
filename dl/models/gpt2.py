"""GPT-2, a Transformer decoder with learned positions.

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
from dl.models.dropout import Dropout
from dl.sharding import Rules
from dl.types import Remat


class GPT2(nn.Module):
    """A causal language model with norms before the branches and a head tied to the embeddings.

    Its parameters are `token_embedding`, `position_embedding`, `layers/layer0`, … and `final_norm`.

    Source: Radford et al. 2019, section 2.3.

    Attributes:
      vocab_size: number of tokens, V.
      max_length: largest number of tokens in a sequence.
      dim: model dim, D.
      num_layers: number of layers.
      num_heads: number of heads; it must divide D.
      hidden_dim: width of the feed-forward networks. `None` means 4·D.
      dropout: probability that a value of the embeddings, a branch or the attention weights is dropped.
      epsilon: number that is added to the variance in each norm.
      is_scanned: whether the layers are one loop of the compiled program; see `blocks.layer.Stack`.
      remat: what is computed again in the backward pass; see `dl.models.rematerialization`.
      implementation: kernel of the attention; see `blocks.attention.Attention`.
      dtype: dtype of the computation; parameters stay float32. `None` means that of the parameters.
    """

    vocab_size: int = 50_257
    max_length: int = 1024
    dim: int = 768
    num_layers: int = 12
    num_heads: int = 12
    hidden_dim: int | None = None
    dropout: float = 0.0
    epsilon: float = 1e-5
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
        normal = nn.initializers.normal
        residual_init = normal(0.02 / (2 * self.num_layers) ** 0.5)
        layer = functools.partial(
            TransformerLayer,
            attention=functools.partial(
                Attention,
                self.num_heads,
                is_causal=True,
                dropout=self.dropout,
                kernel_init=normal(0.02),
                out_init=residual_init,
                implementation=self.implementation,
                dtype=self.dtype,
            ),
            feed_forward=functools.partial(
                FeedForward,
                self.hidden_dim or 4 * self.dim,
                kernel_init=normal(0.02),
                out_init=residual_init,
                dtype=self.dtype,
            ),
            norm=functools.partial(nn.LayerNorm, self.epsilon, dtype=self.dtype),
            dropout=self.dropout,
        )
        embed = nn.Embed(
            self.vocab_size,
            self.dim,
            embedding_init=normal(0.02),
            dtype=self.dtype,
            name="token_embedding",
        )
        positions = nn.Embed(
            self.max_length,
            self.dim,
            embedding_init=normal(0.01),
            dtype=self.dtype,
            name="position_embedding",
        )
        final_norm = nn.LayerNorm(self.epsilon, dtype=self.dtype, name="final_norm")
        return decode(
            tokens_BT,
            segment_ids_BT,
            positions_BT,
            cache,
            max_length=self.max_length,
            embed=lambda tokens, where: Dropout(self.dropout, deterministic=not train)(
                embed(tokens) + positions(where)
            ),
            stack=Stack(layer, self.num_layers, self.is_scanned, self.remat, name="layers"),
            unembed=lambda x: embed.attend(final_norm(x)),
            train=train,
        )

    @property
    def sharding_rules(self) -> Rules:
        """The partition of the parameters over the axis `tensor`."""
        return (*layer_rules(self.is_scanned, has_biases=True), *vocabulary_rules())

    def empty_cache(self, batch_size: int, length: int) -> Cache:
        """Returns the empty cache of `batch_size` rows of at most `length` tokens."""
        return Cache.empty(
            self.num_layers,
            batch_size,
            length,
            self.num_heads,
            self.dim // self.num_heads,
            dtype=self.dtype or jnp.float32,
            is_scanned=self.is_scanned,
        )


def gpt2_small(**options: Any) -> GPT2:
    """Returns GPT-2 small: 124,439,808 parameters."""
    return GPT2(**options)


def gpt2_medium(**options: Any) -> GPT2:
    """Returns GPT-2 medium: 354,823,168 parameters."""
    return GPT2(**{"dim": 1024, "num_layers": 24, "num_heads": 16} | options)


def gpt2_large(**options: Any) -> GPT2:
    """Returns GPT-2 large: 774,030,080 parameters."""
    return GPT2(**{"dim": 1280, "num_layers": 36, "num_heads": 20} | options)


def gpt2_xl(**options: Any) -> GPT2:
    """Returns GPT-2 XL: 1,557,611,200 parameters."""
    return GPT2(**{"dim": 1600, "num_layers": 48, "num_heads": 25} | options)
