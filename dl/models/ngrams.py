"""A linear classifier of n-grams, alone or beside a deep network.

It sees which tokens, pairs of tokens and sequences of characters a text has, but not where they stand.

Sources: Wang & Manning 2012 (pairs of words); Joulin et al. 2016, section 2 (hashing of n-grams); Bojanowski
et al. 2017 (characters of words).

Shapes: B batch, T tokens, V vocabulary, G n-grams of a token, N classes.
"""

import zlib
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dl.models.dropout import Dropout
from dl.ranges import Range, check_count

_MULTIPLIERS = (0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35)  # odd constants that mix the bits of a token


class CharacterNGrams:
    """The sequences of characters in each token, as numbers of buckets.

    Tokens of WordPiece that go on with a word start with ##, and have no mark of its beginning.

    Attributes:
      table_VG: bucket of each n-gram of each token, int32; -1 fills the rows of shorter tokens.
      num_buckets: number of buckets.
    """

    def __init__(
        self,
        token_names: Sequence[str],
        lengths: Sequence[int] = (2, 3, 4, 5),
        num_buckets: int = 2**18,
        most: int = 64,
    ):
        """Computes the table.

        Args:
          token_names: text of each token, such as `data.token_names`.
          lengths: lengths of the n-grams.
          num_buckets: number of buckets. Two n-grams may share one.
          most: largest number of n-grams of a token; those of the end of a long token are left out.

        Raises:
          UserError: a length or a number is not positive.
        """
        self.num_buckets = check_count("num_buckets", num_buckets, Range(1, 2**31 - 1))
        lengths = [check_count("lengths", length, Range(1)) for length in lengths]
        rows = []
        for name in token_names:
            marked = f"{name[2:]}>" if name.startswith("##") else f"<{name}>"
            grams = {
                marked[start : start + length]
                for length in lengths
                for start in range(len(marked) - length + 1)
            }
            rows.append([zlib.crc32(gram.encode()) % num_buckets for gram in sorted(grams)[:most]])
        self.table_VG = np.full((len(rows), max(map(len, rows), default=0) or 1), -1, np.int32)
        for values, row in zip(self.table_VG, rows, strict=True):
            values[: len(row)] = row


class NGramClassifier(nn.Module):
    """A linear model of hashed n-grams: logits = scale / √n Σ w over the n n-grams of a text.

    Its parameters are `weights`, the table w of shape num_buckets × N, which starts at 0. Occurrences are
    counted. With Adam, whose steps do not depend on how frequent an n-gram is, the weights need no inverse
    document frequencies.

    Attributes:
      num_classes: number of classes, N.
      characters: the n-grams of characters. `None` leaves them out.
      orders: numbers of neighbouring tokens that are counted together, at most 3.
      num_buckets: number of buckets of the n-grams of tokens; those of `characters` share the table if it
        has as many.
      dropout: probability that an n-gram is left out in training.
      scale: factor of the logits. With a larger one the weights grow faster.
    """

    num_classes: int
    characters: CharacterNGrams | None = None
    orders: Sequence[int] = (1, 2)
    num_buckets: int = 2**18
    dropout: float = 0.0
    scale: float = 5.0

    @nn.compact
    def __call__(
        self, tokens_BT: jax.Array, segment_ids_BT: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """Returns logits of shape B × N.

        Args:
          tokens_BT: tokens, integers.
          segment_ids_BT: positive for tokens, 0 for padding. `None` means no padding.
          train: whether dropout is on.

        Raises:
          UserError: an order or the number of buckets is out of range.
        """
        check_count("num_buckets", self.num_buckets, Range(1, 2**31 - 1))
        for order in self.orders:
            check_count("orders", order, Range(1, len(_MULTIPLIERS)))
        is_token_BT = jnp.ones(tokens_BT.shape, bool) if segment_ids_BT is None else segment_ids_BT > 0
        buckets, found = [], []
        for order in self.orders:
            mixed, is_whole = jnp.zeros(tokens_BT.shape, jnp.uint32), is_token_BT
            for place in range(order):
                shifted = jnp.pad(tokens_BT, ((0, 0), (0, place)))[:, place:].astype(jnp.uint32)
                mixed = (mixed ^ (mixed >> 15)) + (shifted + 1) * jnp.uint32(_MULTIPLIERS[place])
                is_whole = is_whole & jnp.pad(is_token_BT, ((0, 0), (0, place)))[:, place:]
            mixed = (mixed ^ (mixed >> 13)) * jnp.uint32(_MULTIPLIERS[-1])
            buckets.append((mixed % self.num_buckets).astype(jnp.int32))
            found.append(is_whole)
        size = self.num_buckets
        if self.characters is not None:
            size = max(size, self.characters.num_buckets)
            grams_BTG = jnp.asarray(self.characters.table_VG)[tokens_BT]
            is_gram_BTG = (grams_BTG >= 0) & is_token_BT[..., None]
            buckets.append(grams_BTG.reshape(len(tokens_BT), -1))
            found.append(is_gram_BTG.reshape(len(tokens_BT), -1))
        buckets_BG, found_BG = jnp.concatenate(buckets, 1), jnp.concatenate(found, 1)
        weights = self.param("weights", nn.initializers.zeros, (size, self.num_classes))
        count_B = jnp.maximum(found_BG.sum(1), 1)
        kept_BG = Dropout(self.dropout, deterministic=not train)(found_BG.astype(weights.dtype))
        total_BN = (weights[jnp.maximum(buckets_BG, 0)] * kept_BG[..., None]).sum(1)
        return self.scale * total_BN / jnp.sqrt(count_B)[:, None]


class WideAndDeep(nn.Module):
    """The sum of the logits of two models of the same inputs, such as n-grams and a recurrent network.

    In training each example is given to one of them, drawn at random, whose logits are doubled. So both learn
    to classify alone, and the sum averages two opinions. If they were trained by the loss of their sum, the
    one that learns faster would leave nothing to learn for the other.

    Sources: Cheng et al. 2016, for the sum; Neverova et al. 2016 (ModDrop), for dropping whole inputs.

    Attributes:
      wide: model that returns logits, such as `NGramClassifier`.
      deep: model that returns logits, such as `RecurrentClassifier`.
    """

    wide: nn.Module
    deep: nn.Module

    @nn.compact
    def __call__(self, *inputs: jax.Array | None, train: bool = False) -> jax.Array:
        """Returns logits of the shape of both."""
        wide_BN, deep_BN = self.wide(*inputs, train=train), self.deep(*inputs, train=train)
        if not train:
            return wide_BN + deep_BN
        is_wide_B = jax.random.bernoulli(self.make_rng("dropout"), 0.5, wide_BN.shape[:1])
        return 2.0 * jnp.where(is_wide_B[:, None], wide_BN, deep_BN)
