"""Layers of Transformers, and stacks of them.

Shapes: B batch, T tokens, S keys, D model dim, N heads.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax

from dl.activations import split_examples, split_tokens
from dl.models.blocks.attention import Attention
from dl.models.blocks.cache import Cache
from dl.models.blocks.feed_forward import FeedForward
from dl.models.dropout import Dropout
from dl.models.rematerialization import rematerialized
from dl.types import Remat


@flax.struct.dataclass
class Context:
    """What all layers of a stack share.

    Attributes:
      mask_BTS: True where a token may attend to a key; B or T may be 1. `None` means everywhere.
      bias_BNTS: bias of the logits of self-attention.
      positions_BT: position of each token, int32.
      slots_BT: slots of the cache that the tokens are written to.
      memory_BSD: outputs of an encoder. `None` for an encoder, or where they are in the cache already.
      memory_mask_BTS: True where a token may attend to an output of the encoder.
    """

    mask_BTS: jax.Array | None = None
    bias_BNTS: jax.Array | None = None
    positions_BT: jax.Array | None = None
    slots_BT: jax.Array | None = None
    memory_BSD: jax.Array | None = None
    memory_mask_BTS: jax.Array | None = None


class TransformerLayer(nn.Module):
    """Self-attention, attention to an encoder where there is one, and a feed-forward network.

    Each is a branch of a residual sum with a norm: `attention_norm`, `attention`, `cross_norm`,
    `cross_attention`, `feed_forward_norm`, `feed_forward`.

    Source: Vaswani et al. 2017, section 3.1. Norms before the branches: Xiong et al. 2020.

    Attributes:
      attention: makes self-attention, such as `partial(Attention, num_heads=12)`.
      feed_forward: makes the feed-forward network.
      norm: makes a norm, such as `partial(nn.LayerNorm, epsilon=1e-5)`.
      cross_attention: makes the attention to the encoder. `None` means a layer without it.
      is_norm_first: whether a norm is applied to the input of a branch (pre-norm) instead of to the sum.
      dropout: probability that a value of a branch is dropped in training.
      train: whether values are dropped.
    """

    attention: Callable[..., Attention]
    feed_forward: Callable[..., FeedForward]
    norm: Callable[..., nn.Module]
    cross_attention: Callable[..., Attention] | None = None
    is_norm_first: bool = True
    dropout: float = 0.0
    train: bool = False

    @nn.compact
    def __call__(self, x_BTD: jax.Array, context: Context, cache: Any = None) -> tuple[jax.Array, Any]:
        """Returns the outputs, shape B × T × D, and the updated cache of self-attention.

        With a cache and `context.memory_BSD`, it returns the cache of `cross_attention` in place of that of
        self-attention: the keys and values of `context.memory_BSD`.

        Args:
          x_BTD: inputs.
          context: what all layers share.
          cache: a pair: the `LayerCache` of self-attention and that of `cross_attention`. `None` means that
            nothing is cached.
        """
        own, memory = (None, None) if cache is None else cache
        own_new = own

        def attend(y_BTD: jax.Array) -> jax.Array:
            nonlocal own_new
            y_BTD, own_new = self.attention(name="attention")(
                y_BTD,
                mask_BTS=context.mask_BTS,
                bias_BNTS=context.bias_BNTS,
                positions_BT=context.positions_BT,
                slots_BT=context.slots_BT,
                cache=own,
                train=self.train,
            )
            return y_BTD

        x_BTD = self._residual(x_BTD, attend, "attention_norm")
        if self.cross_attention is not None:
            cross = self.cross_attention(name="cross_attention")
            mask_BTS = context.memory_mask_BTS

            def attend_to_memory(y_BTD: jax.Array) -> jax.Array:
                nonlocal memory
                y_BTD, memory = cross(
                    y_BTD, context.memory_BSD, mask_BTS=mask_BTS, cache=memory, train=self.train
                )
                return y_BTD

            x_BTD = self._residual(x_BTD, attend_to_memory, "cross_norm")
        feed_forward = self.feed_forward(name="feed_forward")
        x_BTD = self._residual(x_BTD, lambda y: feed_forward(y, self.train), "feed_forward_norm")
        return x_BTD, own_new if cache is None or context.memory_BSD is None else memory

    def _residual(
        self, x_BTD: jax.Array, branch: Callable[[jax.Array], jax.Array], norm_name: str
    ) -> jax.Array:
        norm, drop = self.norm(name=norm_name), Dropout(self.dropout, deterministic=not self.train)
        x_BTD = split_tokens(x_BTD)
        # Inside a branch sequences are whole, because its heads or hidden units are split over `tensor`.
        inputs_BTD = split_examples(split_tokens(norm(x_BTD)) if self.is_norm_first else x_BTD)
        sum_BTD = x_BTD + drop(split_tokens(split_examples(branch(inputs_BTD))))
        return sum_BTD if self.is_norm_first else norm(sum_BTD)


class Stack(nn.Module):
    """Equal layers, one after the other, named `layer0`, `layer1` and so on.

    Attributes:
      layer: makes one layer: a `functools.partial` of `TransformerLayer`.
      num_layers: number of layers.
      is_scanned: whether the layers are one loop of the compiled program, so that the time to compile does
        not grow with the depth. The parameters are then those of one module `layer` with a leading axis.
      remat: what is computed again in the backward pass; see `dl.models.rematerialization`.
    """

    layer: functools.partial[TransformerLayer]
    num_layers: int
    is_scanned: bool = False
    remat: Remat = "none"

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, context: Context, cache: Cache | None = None, train: bool = False
    ) -> tuple[jax.Array, Any]:
        """Returns the outputs of the last layer, and the updated `Cache.layers`.

        With a cache and `context.memory_BSD`, it returns `Cache.memory` in place of `Cache.layers`.
        """
        layer_type: Any = rematerialized(self.layer.func, self.remat, prevent_cse=not self.is_scanned)
        caches = None if cache is None else (cache.layers, cache.memory)
        if self.is_scanned:
            layer_type = nn.scan(
                layer_type,
                variable_axes={"params": 0, "intermediates": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=(nn.broadcast, 0),
                length=self.num_layers,
            )
            layer = layer_type(**self.layer.keywords, train=train, name="layer")
            return layer(x_BTD, context, caches)
        updated = []
        for index in range(self.num_layers):
            layer = layer_type(**self.layer.keywords, train=train, name=f"layer{index}")
            of_layer = None
            if cache is not None:
                of_layer = cache.layers[index], None if cache.memory is None else cache.memory[index]
            x_BTD, layer_cache = layer(x_BTD, context, of_layer)
            updated.append(layer_cache)
        return x_BTD, tuple(updated)
