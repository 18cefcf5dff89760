"""Positions of tokens: sinusoidal and rotary embeddings, relative biases, and positions within segments.

Shapes: B batch, T queries, S keys, D model dim, N heads, H head dim.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dl.errors import UserError


def positions_in_segments(segment_ids_BT: jax.Array) -> jax.Array:
    """Returns the position of each token in its segment, int32, shape B × T; each segment starts at 0.

    Args:
      segment_ids_BT: number of the segment that each token belongs to. Neighbouring tokens with the same
        number form one segment. Padding is a segment of its own.
    """
    index_BT = jnp.broadcast_to(jnp.arange(segment_ids_BT.shape[1]), segment_ids_BT.shape)
    is_same_BT = segment_ids_BT[:, 1:] == segment_ids_BT[:, :-1]
    is_start_BT = jnp.pad(~is_same_BT, ((0, 0), (1, 0)), constant_values=True)
    return index_BT - jax.lax.cummax(jnp.where(is_start_BT, index_BT, 0), axis=1)


def sinusoidal(length: int, dim: int) -> np.ndarray:
    """Returns the fixed position embeddings of Vaswani et al. (2017, section 3.5), float32, length × dim.

    The columns alternate: PE(t, 2i) = sin(t / 10000^(2i / dim)), PE(t, 2i + 1) = cos(t / 10000^(2i / dim)).

    Raises:
      UserError: `dim` is odd.
    """
    if dim % 2:
        raise UserError(f"dim={dim} is odd; sinusoidal positions need an even model dim")
    angle = np.arange(length)[:, None] / 10_000 ** (np.arange(0, dim, 2) / dim)[None]
    return np.stack([np.sin(angle), np.cos(angle)], -1).reshape(length, dim).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Rotary:
    """Rotary positions: each pair of values of queries and keys is turned by an angle that grows with t.

    The pairs are (i, i + H/2), as in the published weights of Llama. The paper pairs neighbours; the two
    differ by a permutation of the columns of the query and key projections.

    Source: Su et al. 2021, eq. 34.

    Attributes:
      base: base of the geometric sequence of frequencies, base^(-2i / H).
      stretch: stretching of long wavelengths, for a longer context than in pre-training: factor, low and
        high frequency factor, and the context of pre-training (Llama 3.1). `None` means no stretching.
    """

    base: float = 10_000.0
    stretch: tuple[float, float, float, int] | None = None

    def frequencies(self, head_dim: int) -> np.ndarray:
        """Returns the angle in radians per position of each pair, float64, shape H/2."""
        if head_dim % 2:
            raise UserError(
                f"a head has {head_dim} values, and rotary positions need an even number; choose another "
                "model dim or number of heads"
            )
        frequency = self.base ** (-np.arange(0, head_dim, 2) / head_dim)
        if self.stretch is None:
            return frequency
        factor, low, high, context = self.stretch
        # Wavelengths above context / low are stretched, those below context / high stay, and the weights of
        # the two change linearly in between.
        smooth = np.clip((context * frequency / (2 * math.pi) - low) / (high - low), 0, 1)
        return (1 - smooth) * frequency / factor + smooth * frequency

    def __call__(self, x_BTNH: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """Returns queries or keys turned according to their positions; computed in float32."""
        frequency_11H = jnp.asarray(self.frequencies(x_BTNH.shape[-1]), jnp.float32)[None, None]
        angle_BT1H = (positions_BT[..., None].astype(jnp.float32) * frequency_11H)[:, :, None]
        sin, cos = jnp.sin(angle_BT1H), jnp.cos(angle_BT1H)
        first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
        turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
        return turned.astype(x_BTNH.dtype)


class RelativeBias(nn.Module):
    """A learned bias of the attention logits for each head and distance between query and key.

    Distances share a parameter in buckets: half of the buckets hold one distance each, the others
    logarithmically more, up to `max_distance`. The parameter is `embedding`, shape buckets × N.

    Source: Raffel et al. 2020, section 2.1.

    Attributes:
      num_heads: number of heads, N.
      num_buckets: number of buckets.
      max_distance: distance from which on all distances share the last bucket.
      is_causal: whether keys after the query are not distinguished, as in a decoder.
    """

    num_heads: int
    num_buckets: int = 32
    max_distance: int = 128
    is_causal: bool = False

    @nn.compact
    def __call__(self, query_positions_BT: jax.Array, key_positions_BS: jax.Array) -> jax.Array:
        """Returns the bias, float32, shape B × N × T × S."""
        shape = (self.num_buckets, self.num_heads)
        embedding = self.param("embedding", nn.initializers.normal(1.0), shape, jnp.float32)
        distance_BTS = key_positions_BS[:, None] - query_positions_BT[:, :, None]
        return embedding[self._buckets(distance_BTS)].transpose(0, 3, 1, 2)

    def _buckets(self, distance: jax.Array) -> jax.Array:
        num_buckets, bucket = self.num_buckets, jnp.zeros_like(distance)
        if self.is_causal:
            distance = jnp.maximum(-distance, 0)
        else:
            num_buckets //= 2
            bucket += jnp.where(distance > 0, num_buckets, 0)
            distance = jnp.abs(distance)
        exact = num_buckets // 2
        scale = (num_buckets - exact) / math.log(self.max_distance / exact)
        far = exact + (jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact) * scale).astype(
            jnp.int32
        )
        return bucket + jnp.where(distance < exact, distance, jnp.minimum(far, num_buckets - 1))
