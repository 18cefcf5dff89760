"""Multi-head attention.

Shapes: B batch, T queries, S keys, D model dim, N heads, K key-value heads, G = N / K heads that share keys,
H head dim.
"""

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from dl.errors import UserError
from dl.models.blocks.cache import LayerCache
from dl.models.blocks.positions import Rotary
from dl.models.dropout import Dropout

Initializer = nn.initializers.Initializer
NUM_BLOCKS = 4  # of queries, in causal attention
SHORTEST_IN_BLOCKS = 128  # queries


class Attention(nn.Module):
    """Attention of queries from one sequence to keys and values from the same sequence or from another.

    The layers are `query`, `key`, `value` and `out`, each one dense layer over all heads. If the collection
    `intermediates` is mutable and there is no cache, the attention weights are stored there as `weights`,
    shape B × N × T × S.

    Source: Vaswani et al. 2017, eq. 1 and section 3.2.2. Groups of heads that share keys and values: Ainslie
    et al. 2023.

    Attributes:
      num_heads: number of heads of the queries, N.
      num_kv_heads: number of heads of keys and values, K, which divides N. `None` means N.
      head_dim: H. `None` means D / N, where N must divide D.
      is_causal: whether a query attends only to keys at its own position and before.
      rotary: rotary positions of queries and keys; `None` means none.
      has_qk_norm: whether queries and keys are normalised over H (RMSNorm), before the rotary positions.
      norm_epsilon: number that this norm adds to the mean square.
      scale: factor of the logits. `None` means 1 / √H.
      use_bias: whether `query`, `key` and `value` have biases.
      use_out_bias: whether `out` has a bias. `None` means `use_bias`.
      dropout: probability that an attention weight is dropped in training.
      kernel_init: initializer of `query`, `key` and `value`.
      query_init: initializer of `query`. `None` means `kernel_init`.
      out_init: initializer of `out`. `None` means `kernel_init`.
      implementation: kernel of `jax.nn.dot_product_attention`; `cudnn` is fused and needs a GPU and 16 bits.
        `None` means the functions below. They are faster on CPUs, where JAX has no fused kernel either.
      dtype: dtype of the computation; parameters stay float32. `None` means that of inputs and parameters.
    """

    num_heads: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    is_causal: bool = False
    rotary: Rotary | None = None
    has_qk_norm: bool = False
    norm_epsilon: float = 1e-6
    scale: float | None = None
    use_bias: bool = True
    use_out_bias: bool | None = None
    dropout: float = 0.0
    kernel_init: Initializer = nn.initializers.xavier_uniform()
    query_init: Initializer | None = None
    out_init: Initializer | None = None
    implementation: Literal["xla", "cudnn"] | None = None
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        memory_BSD: jax.Array | None = None,
        *,
        mask_BTS: jax.Array | None = None,
        bias_BNTS: jax.Array | None = None,
        positions_BT: jax.Array | None = None,
        slots_BT: jax.Array | None = None,
        cache: LayerCache | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, LayerCache | None]:
        """Returns the outputs, shape B × T × D, and the updated cache.

        Without a cache, the second is the keys and values of `memory_BSD`, for later calls; `None` without
        `memory_BSD`.

        Args:
          x_BTD: sequence of the queries.
          memory_BSD: sequence of keys and values. `None` means `x_BTD`, or, for a cache without slots to
            write to, the keys and values in the cache.
          mask_BTS: True where a query may attend to a key; B or T may be 1. `None` means everywhere.
          bias_BNTS: bias of the logits; B may be 1.
          positions_BT: positions for `rotary`, int32. `None` means 0, 1, …. Rotary positions are those of one
            sequence, so they exclude `memory_BSD`.
          slots_BT: slots of the cache that the keys and values of `x_BTD` are written to; `LayerCache.write`.
            The mask must then say which slots each query attends to, also if the attention is causal.
          cache: keys and values of earlier tokens.
          train: whether attention weights are dropped.
        """
        if self.rotary is not None and memory_BSD is not None:
            raise ValueError("rotary positions are those of one sequence; attend to another one without them")
        num_kv_heads = self.num_kv_heads or self.num_heads
        if self.num_heads % num_kv_heads:
            raise UserError(
                f"num_kv_heads={num_kv_heads} does not divide num_heads={self.num_heads}; choose a divisor"
            )
        if positions_BT is None:
            positions_BT = jnp.arange(x_BTD.shape[1])[None]
        query_BTNH = self._project(x_BTD, self.num_heads, x_BTD.shape[-1], "query")
        if self.rotary is not None:
            query_BTNH = self.rotary(query_BTNH, positions_BT)
        if cache is None or slots_BT is not None:
            source = x_BTD if memory_BSD is None else memory_BSD
            key_BSKH = self._project(source, num_kv_heads, x_BTD.shape[-1], "key")
            value_BSKH = self._project(source, num_kv_heads, x_BTD.shape[-1], "value")
            if self.rotary is not None:
                key_BSKH = self.rotary(key_BSKH, positions_BT)
        if cache is None:
            attended_BTNH = self._attend(query_BTNH, key_BSKH, value_BSKH, mask_BTS, bias_BNTS, train)
            if memory_BSD is not None:
                cache = LayerCache(key_BSKH.swapaxes(1, 2), value_BSKH.swapaxes(1, 2))
        else:
            if slots_BT is not None:
                cache = cache.write(key_BSKH, value_BSKH, slots_BT)
            attended_BTNH = attend_to_cache(query_BTNH, cache, mask_BTS, bias_BNTS, self.scale)
        attended = attended_BTNH.reshape(*attended_BTNH.shape[:2], -1)
        use_bias = self.use_bias if self.use_out_bias is None else self.use_out_bias
        out = self._dense(x_BTD.shape[-1], use_bias, self.out_init or self.kernel_init, "out")
        return out(attended), cache

    def _dense(self, dim: int, use_bias: bool, init: Initializer, name: str) -> nn.Dense:
        return nn.Dense(dim, use_bias=use_bias, kernel_init=init, dtype=self.dtype, name=name)

    def _project(self, x_BTD: jax.Array, num_heads: int, model_dim: int, name: str) -> jax.Array:
        if self.head_dim is None and model_dim % self.num_heads:
            raise UserError(
                f"num_heads={self.num_heads} does not divide the model dim {model_dim}; choose a divisor"
            )
        head_dim = self.head_dim or model_dim // self.num_heads
        init = self.query_init or self.kernel_init if name == "query" else self.kernel_init
        x = self._dense(num_heads * head_dim, self.use_bias, init, name)(x_BTD)
        x_BTNH = x.reshape(*x.shape[:2], num_heads, head_dim)
        if self.has_qk_norm and name != "value":
            x_BTNH = nn.RMSNorm(self.norm_epsilon, dtype=self.dtype, name=f"{name}_norm")(x_BTNH)
        return x_BTNH

    def _attend(
        self,
        query_BTNH: jax.Array,
        key_BSKH: jax.Array,
        value_BSKH: jax.Array,
        mask_BTS: jax.Array | None,
        bias_BNTS: jax.Array | None,
        train: bool,
    ) -> jax.Array:
        drop = Dropout(self.dropout, deterministic=not train)
        drops = train and self.dropout > 0
        keys = LayerCache(key_BSKH.swapaxes(1, 2), value_BSKH.swapaxes(1, 2))
        if not self.is_initializing() and self.is_mutable_collection("intermediates"):

            def with_weights(weights_BNTS: jax.Array) -> jax.Array:
                self.sow("intermediates", "weights", weights_BNTS)
                return drop(weights_BNTS)

            if self.is_causal:
                causal_1TS = causal_mask(0, query_BTNH.shape[1], key_BSKH.shape[1])
                mask_BTS = causal_1TS if mask_BTS is None else mask_BTS & causal_1TS
            return attend_to_cache(query_BTNH, keys, mask_BTS, bias_BNTS, self.scale, with_weights)
        if drops or self.implementation is None:
            attend = attend_causally if self.is_causal else attend_to_cache
            return attend(query_BTNH, keys, mask_BTS, bias_BNTS, self.scale, drop)
        return jax.nn.dot_product_attention(
            query_BTNH,
            key_BSKH,
            value_BSKH,
            bias=None if bias_BNTS is None else bias_BNTS.astype(query_BTNH.dtype),
            mask=None if mask_BTS is None else mask_BTS[:, None],
            scale=self.scale,
            is_causal=self.is_causal,
            implementation=self.implementation,
        )


def causal_mask(start: int, end: int, num_keys: int) -> jax.Array:
    """Returns which keys the queries `start`, …, `end` - 1 may attend to, bool, shape 1 × T × S."""
    return jnp.arange(start, end)[None, :, None] >= jnp.arange(num_keys)[None, None]


def attend_causally(
    query_BTNH: jax.Array,
    cache: LayerCache,
    mask_BTS: jax.Array | None,
    bias_BNTS: jax.Array | None = None,
    scale: float | None = None,
    with_weights: Callable[[jax.Array], jax.Array] = lambda weights: weights,
) -> jax.Array:
    """Returns causal attention, shape B × T × N × H, in blocks of queries.

    A block attends only to the keys up to its end, so four blocks need 5/8 of the products and of the memory
    of the whole. The arguments are those of `attend_to_cache`; slot s is the key of query s.
    """
    length, num_slots = query_BTNH.shape[1], cache.keys_BKSH.shape[2]
    size = -(-length // NUM_BLOCKS) if length >= SHORTEST_IN_BLOCKS else length
    blocks = []
    for start in range(0, length, size):
        end = min(start + size, length)
        seen = min(end, num_slots)
        mask = causal_mask(start, end, seen)
        if mask_BTS is not None:
            mask = mask & (mask_BTS if mask_BTS.shape[1] == 1 else mask_BTS[:, start:end])[:, :, :seen]
        bias = None if bias_BNTS is None else bias_BNTS[:, :, start:end, :seen]
        keys = LayerCache(cache.keys_BKSH[:, :, :seen], cache.values_BKSH[:, :, :seen])
        blocks.append(attend_to_cache(query_BTNH[:, start:end], keys, mask, bias, scale, with_weights))
    return jnp.concatenate(blocks, 1)


def attend_to_cache(
    query_BTNH: jax.Array,
    cache: LayerCache,
    mask_BTS: jax.Array | None,
    bias_BNTS: jax.Array | None = None,
    scale: float | None = None,
    with_weights: Callable[[jax.Array], jax.Array] = lambda weights: weights,
) -> jax.Array:
    """Returns softmax(scale · Q Kᵀ + bias) V, shape B × T × N × H; the softmax is computed in float32.

    It reads keys and values as a cache holds them, without a copy of the cache in another order of its axes.

    Args:
      query_BTNH: queries.
      cache: keys and values.
      mask_BTS: True where a query may attend to a slot.
      bias_BNTS: bias of the logits.
      scale: factor of the logits. `None` means 1 / √H.
      with_weights: function of the attention weights, shape B × N × T × S, such as dropout.
    """
    batch, length, num_heads, head_dim = query_BTNH.shape
    num_kv_heads, num_slots = cache.keys_BKSH.shape[1:3]
    groups = num_heads // num_kv_heads
    query_BKGTH = query_BTNH.reshape(batch, length, num_kv_heads, groups, head_dim).transpose(0, 2, 3, 1, 4)
    query_BKMH = query_BKGTH.reshape(batch, num_kv_heads, groups * length, head_dim)
    logits = jnp.einsum(
        "bkmh,bksh->bkms", query_BKMH, cache.keys_BKSH, preferred_element_type=jnp.float32
    ) * (head_dim**-0.5 if scale is None else scale)
    logits_BNTS = logits.reshape(batch, num_heads, length, num_slots)
    if bias_BNTS is not None:
        logits_BNTS = logits_BNTS + bias_BNTS
    if mask_BTS is not None:
        logits_BNTS = jnp.where(mask_BTS[:, None], logits_BNTS, jnp.finfo(jnp.float32).min)
    weights_BNTS = with_weights(jax.nn.softmax(logits_BNTS, axis=-1)).astype(query_BTNH.dtype)
    weights_BKMS = weights_BNTS.reshape(batch, num_kv_heads, groups * length, num_slots)
    attended_BKMH = jnp.einsum("bkms,bksh->bkmh", weights_BKMS, cache.values_BKSH.astype(query_BTNH.dtype))
    attended = attended_BKMH.reshape(batch, num_kv_heads, groups, length, head_dim)
    return attended.transpose(0, 3, 1, 2, 4).reshape(query_BTNH.shape)
