"""Span corruption: spans of tokens are replaced by sentinels, and a model writes what was there.

Source: Raffel et al. 2020 (T5, arXiv:1910.10683), section 3.1.4.

Shapes: T tokens of an example, S tokens of the source.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dl.data.text.contract import Tokenizer
from dl.errors import UserError
from dl.ranges import Range, check, check_count
from dl.types import Batch, Key

_FIRST_SENTINEL = "<extra_id_0>"  # name in the vocabularies of T5, where <extra_id_1> is the token before it

_REPLACED = ("tokens", "targets", "segment_ids", "positions")


@dataclasses.dataclass(frozen=True)
class CorruptSpans:
    """A function from a key and ONE example to a source and a target; made by `corrupt_spans`.

    It has the form of `Experiment.augment`. The result is a function of the key and the example, so in
    training it follows from the seed, the step and the index of the example.

    Attributes:
      rate: fraction of the tokens that are replaced.
      mean_length: mean number of tokens of a span.
      first_sentinel: token that replaces the first span. The sentinel of each later span is one less.
      num_sentinels: largest number of spans.
      vocab_size: number of tokens that a model must have, with the sentinels.
      end_id: token after the last token of the source and of the target; `None` for none.
      padding_id: token that pads the source and the target.
    """

    rate: float
    mean_length: float
    first_sentinel: int
    num_sentinels: int
    vocab_size: int
    end_id: int | None
    padding_id: int | None

    def lengths(self, num_tokens: int) -> tuple[int, int]:
        """Returns the number of tokens of the source and of the target for a number of tokens.

        Both contain a sentinel for each span, and the end token. They are those of `random_spans_helper` in
        T5's code, in which 568 tokens become 512 and 114.
        """
        num_noise, num_spans = self._counts(num_tokens)
        num_ends = int(self.end_id is not None)
        return num_tokens - num_noise + num_spans + num_ends, num_noise + num_spans + num_ends

    def __call__(self, key: Key, example: Batch) -> Batch:
        """Returns the example with `source` and `target` in place of `tokens`; see `corrupt_spans`.

        `segment_ids`, `positions` and `targets` of the tokens are left out too. Tokens of segment 0 are
        padding. Without `segment_ids`, the tokens that equal `padding_id` are padding. It is at the end.

        Raises:
          UserError: the example needs more sentinels than there are, or it has `segment_ids` and the
            tokenizer has no padding token.
        """
        tokens_T = example["tokens"]
        kept = {k: v for k, v in example.items() if k not in _REPLACED}
        length = len(tokens_T)
        if (num_spans := self._counts(length)[1]) > self.num_sentinels:
            raise UserError(
                f"{length} tokens have {num_spans} corrupted spans, and there are {self.num_sentinels} "
                "sentinels; choose more sentinels, a larger mean_length or shorter sequences"
            )
        if "segment_ids" in example:
            if self.padding_id is None:
                raise UserError(
                    "the tokenizer has no padding token, and examples of unequal length need one; choose one "
                    "with a special token of the role padding"
                )
            num_tokens = (example["segment_ids"] > 0).sum()
        elif self.padding_id is not None:
            num_tokens = (tokens_T != self.padding_id).sum()
        else:
            num_tokens = jnp.int32(length)
        is_noise_T = self._noise(key, length, num_tokens)
        is_token_T = jnp.arange(length) < num_tokens
        is_start_T = is_noise_T & ~jnp.pad(is_noise_T[:-1], (1, 0))
        number_T = jnp.cumsum(is_start_T)  # of the spans that have started
        sentinel_T = self.first_sentinel + 1 - number_T

        source_length, target_length = self.lengths(length)
        stays_T = is_token_T & (~is_noise_T | is_start_T)
        parts = [(jnp.where(is_start_T, sentinel_T, tokens_T), jnp.cumsum(stays_T) - 1, stays_T)]
        source = self._joined(source_length, parts, stays_T.sum())

        at_T = jnp.cumsum(is_noise_T) - 1 + number_T  # of a noise token in the target, after its sentinel
        parts = [(tokens_T, at_T, is_noise_T), (sentinel_T, at_T - 1, is_start_T)]
        target = self._joined(target_length, parts, is_noise_T.sum() + is_start_T.sum())
        return {**kept, "source": source, "target": target}

    def _counts(self, num_tokens: int) -> tuple[int, int]:
        """Returns the number of replaced tokens and of spans; one or more, if a token can stay."""
        if num_tokens < 2:
            return 0, 0
        num_noise = min(max(round(num_tokens * self.rate), 1), num_tokens - 1)
        num_spans = max(round(num_noise / self.mean_length), 1)
        return num_noise, min(num_spans, num_noise, num_tokens - num_noise + 1)

    def _noise(self, key: Key, length: int, num_tokens: jax.Array) -> jax.Array:
        """Returns whether each token is replaced, (T,); all choices of spans are equally likely."""
        table = np.array([self._counts(n) for n in range(length + 1)], np.int32)
        num_noise, num_spans = jnp.asarray(table)[num_tokens]
        gap_key, cut_key = jax.random.split(key)
        # The spans lie in different gaps between the tokens that stay, or before or after all of them.
        is_gap = _choose(gap_key, length + 1, num_tokens - num_noise + 1, num_spans)
        # The replaced tokens are cut into spans before the first of them and before others.
        is_cut = jnp.pad(_choose(cut_key, length - 1, num_noise - 1, num_spans - 1), (1, 0))
        span_of_T = jnp.cumsum(is_cut)
        is_counted_T = jnp.arange(length) < num_noise
        size_of = jnp.zeros(length + 1, jnp.int32).at[span_of_T].add(jnp.int32(is_counted_T))
        num_before = jnp.cumsum(size_of) - size_of  # tokens of the spans before each span
        stay_T = jnp.arange(length)  # number of a token among those that stay
        place_T = stay_T + num_before[jnp.cumsum(is_gap)[:length]]
        place_T = jnp.where(stay_T < num_tokens - num_noise, place_T, length)
        is_token_T = jnp.arange(length) < num_tokens
        return is_token_T & jnp.ones(length, bool).at[place_T].set(False, mode="drop")

    def _joined(self, length: int, parts: Sequence[tuple[jax.Array, ...]], num_used: jax.Array) -> jax.Array:
        """Returns values at their places, then the end token, then padding."""
        joined = jnp.full(length, 0 if self.padding_id is None else self.padding_id, jnp.int32)
        for values_T, at_T, is_used_T in parts:
            joined = joined.at[jnp.where(is_used_T, at_T, length)].set(values_T, mode="drop")
        return joined if self.end_id is None else joined.at[num_used].set(self.end_id)


def corrupt_spans(
    tokenizer: Tokenizer, rate: float = 0.15, mean_length: float = 3.0, *, num_sentinels: int = 100
) -> CorruptSpans:
    """Returns a function that replaces spans of an example by sentinels, as the pretraining of T5.

    In `source`, int32 (S,), each span is replaced by one sentinel. `target`, int32, holds each sentinel and
    the tokens of its span. Both end with the end token, if there is one, and are padded. So the tokens
    "a b c d e f" may become the source "a X d Y f" and the target "X b c Y e".

    Of n tokens, round(n × rate) are replaced, in round(n × rate / mean_length) spans, and at least one. The
    lengths of the spans and the places between them are drawn uniformly. In T5's code the first token always
    stays and the last is always replaced; here every place is equally likely.

    The sentinels are <extra_id_0>, <extra_id_1>, … as far as they fall by one in the vocabulary, as in that
    of T5. Otherwise they are extra tokens after the vocabulary, from the largest to the smallest, so that the
    model needs `CorruptSpans.vocab_size` tokens.

    Args:
      tokenizer: the tokenizer of the examples.
      rate: fraction of the tokens that are replaced, in (0, 1).
      mean_length: mean number of tokens of a span, at least 1.
      num_sentinels: number of sentinels, which is the largest number of spans.

    Raises:
      UserError: an argument is out of range.
    """
    check("rate", rate, Range(0, 1, above_low=True, below_high=True))
    check("mean_length", mean_length, Range(1))
    num_sentinels = check_count("num_sentinels", num_sentinels, Range(1, 2**20))
    vocab_size = tokenizer.vocab_size
    if _FIRST_SENTINEL in tokenizer.token_names:
        first = tokenizer.token_names.index(_FIRST_SENTINEL)
        names = dict(zip(tokenizer.token_names, range(vocab_size), strict=True))
        named = itertools.takewhile(lambda k: names.get(f"<extra_id_{k}>") == first - k, range(num_sentinels))
        num_sentinels = len(list(named))
    else:
        first = vocab_size + num_sentinels - 1
        vocab_size += num_sentinels
    return CorruptSpans(
        rate, mean_length, first, num_sentinels, vocab_size, tokenizer.end_id, tokenizer.padding_id
    )


def _choose(key: Key, size: int, num_possible: jax.Array, num_chosen: jax.Array) -> jax.Array:
    """Returns a mask of `size` places, of which `num_chosen` of the first `num_possible` are True."""
    draw = jnp.where(jnp.arange(size) < num_possible, jax.random.uniform(key, (size,)), 2.0)
    return jnp.zeros(size, bool).at[jnp.argsort(draw)].set(jnp.arange(size) < num_chosen)
