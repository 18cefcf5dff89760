"""Pairs of random sequences for an encoder-decoder: the target repeats the source, or reverses it.

Both test whether the attention of a decoder finds its way in the source. A model that solves them writes
targets without one wrong token.
"""

import string
from dataclasses import dataclass

import numpy as np

from dl.data.splits import ArraySplits
from dl.data.synthetic.draw import draw_splits
from dl.data.text.tokenizers_plain import CharacterTokenizer
from dl.ranges import Range, check_count

LETTERS = string.ascii_lowercase


@dataclass(frozen=True, kw_only=True)
class SequencePairs(ArraySplits):
    """Pairs of sequences, made by `sequence_pairs`.

    Examples are {"source": int32 (S,), "target": int32 (S,)}. Both sequences end with `tokenizer.end_id` and
    are padded with `tokenizer.padding_id`.

    Attributes:
      tokenizer: the letters, and tokens for padding, start and end.
    """

    tokenizer: CharacterTokenizer

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    @property
    def token_names(self) -> tuple[str, ...]:
        return self.tokenizer.token_names


def sequence_pairs(
    max_length: int = 12,
    *,
    min_length: int = 5,
    is_reversed: bool = False,
    num_letters: int = 26,
    num_train: int = 20_000,
    num_validation: int = 500,
    num_test: int = 1000,
    seed: int = 0,
) -> SequencePairs:
    """Returns pairs of a random sequence of letters and the same sequence, or its reversal.

    The number of letters is uniform in [`min_length`, `max_length`], and each letter is uniform. A short
    sequence of few letters may occur in several splits: there are `num_letters ** min_length` of the shortest
    ones.

    Args:
      max_length: largest number of letters. A row has one token more, for the end.
      min_length: smallest number of letters.
      is_reversed: whether the target has the letters of the source in reverse order.
      num_letters: number of different letters, at most 26.
      num_train: number of training examples.
      num_validation: number of validation examples.
      num_test: number of test examples.
      seed: seed of the examples. It is not that of a run, so that all runs have the same data.

    Raises:
      UserError: a number is out of range.
    """
    max_length = check_count("max_length", max_length, Range(1, 2**20))
    min_length = check_count("min_length", min_length, Range(1, max_length))
    num_letters = check_count("num_letters", num_letters, Range(1, len(LETTERS)))
    tokenizer = CharacterTokenizer(LETTERS[:num_letters], ("padding", "start", "end"))

    def row_of(letters: np.ndarray) -> np.ndarray:
        row = np.full(max_length + 1, tokenizer.padding_id, np.int32)
        row[: len(letters) + 1] = [*letters, tokenizer.end_id]
        return row

    def draw(generator: np.random.Generator, split: str) -> dict[str, np.ndarray]:
        letters = generator.integers(num_letters, size=generator.integers(min_length, max_length + 1))
        return {"source": row_of(letters), "target": row_of(letters[::-1] if is_reversed else letters)}

    train, evaluations = draw_splits(draw, (num_train, num_validation, num_test), seed)
    name = f"{'reversals' if is_reversed else 'copies'}_{max_length}"
    return SequencePairs(name, train, evaluations, f"drawn from the seed {seed}", tokenizer=tokenizer)
