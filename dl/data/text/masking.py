"""Masking of tokens, which a masked language model predicts.

Source: Devlin et al. 2019 (BERT, arXiv:1810.04805), section 3.1 and appendix A.1.

Shapes: T tokens of a sequence, V tokens of the vocabulary.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from dl.data.text.contract import Tokenizer
from dl.errors import UserError
from dl.losses import NOT_COUNTED
from dl.ranges import PROBABILITY, check
from dl.types import Batch, Key


@dataclasses.dataclass(frozen=True, eq=False)
class MaskTokens:
    """A function from a key and ONE example to an example with masked tokens; made by `mask_tokens`.

    It has the form of `Experiment.augment`. The result is a function of the key and the example, so in
    training it follows from the seed, the step and the index of the example.

    Attributes:
      rate: probability that a token, or a word, is chosen.
      mask_id: token that replaces most of the chosen tokens.
      mask_fraction: fraction of the chosen tokens that become `mask_id`.
      random_fraction: fraction of the chosen tokens that become a random token.
      is_special_V: whether each token is special. Such tokens are never chosen and never drawn.
      words: how tokens make words: whether each token starts, and whether it ends, inside of a word. `None`
        means that every token is chosen for itself.
    """

    rate: float
    mask_id: int
    mask_fraction: float
    random_fraction: float
    is_special_V: np.ndarray
    words: tuple[np.ndarray, np.ndarray] | None

    def __call__(self, key: Key, example: Batch) -> Batch:
        """Returns the example with `tokens` in part replaced, and `targets`, both integers (T,).

        A target is the original token where a token was chosen, and `losses.NOT_COUNTED` elsewhere. Tokens of
        segment 0 in `segment_ids`, if the example has it, are padding and never chosen.
        """
        tokens_T = example["tokens"]
        chosen_key, change_key, random_key = jax.random.split(key, 3)
        draw_T = jax.random.uniform(chosen_key, tokens_T.shape)
        if self.words is not None:
            draw_T = draw_T[_starts_of_words(tokens_T, *self.words)]
        may_change_T = ~jnp.asarray(self.is_special_V)[tokens_T]
        if "segment_ids" in example:
            may_change_T &= example["segment_ids"] > 0
        chosen_T = may_change_T & (draw_T < self.rate)

        change_T = jax.random.uniform(change_key, tokens_T.shape)
        ordinary = jnp.asarray(np.flatnonzero(~self.is_special_V), tokens_T.dtype)
        random_T = ordinary[jax.random.randint(random_key, tokens_T.shape, 0, len(ordinary))]
        changed_T = jnp.where(change_T < self.mask_fraction + self.random_fraction, random_T, tokens_T)
        changed_T = jnp.where(change_T < self.mask_fraction, self.mask_id, changed_T)
        return {
            **example,
            "tokens": jnp.where(chosen_T, changed_T, tokens_T),
            "targets": jnp.where(chosen_T, jnp.asarray(tokens_T, jnp.int32), NOT_COUNTED),
        }


def mask_tokens(
    tokenizer: Tokenizer,
    rate: float = 0.15,
    *,
    mask_fraction: float = 0.8,
    random_fraction: float = 0.1,
    whole_words: bool = False,
) -> MaskTokens:
    """Returns a function that replaces random tokens of an example, which a model then predicts, as BERT's.

    Each token is chosen with probability `rate`. A chosen token becomes the mask token with probability
    `mask_fraction`, a random token with probability `random_fraction`, and otherwise it stays as it is.
    Special tokens and padding are never chosen, and random tokens are never special.

    Args:
      tokenizer: tokenizer with a mask token.
      rate: probability that a token is chosen.
      mask_fraction: fraction of the chosen tokens that become the mask token.
      random_fraction: fraction of the chosen tokens that become a random token.
      whole_words: whether all tokens of a word are chosen together. Each of them is replaced for itself.

    Raises:
      UserError: a probability is out of range, or the tokenizer has no mask token or only special tokens.
    """
    for name, value in (
        ("rate", rate),
        ("mask_fraction", mask_fraction),
        ("random_fraction", random_fraction),
    ):
        check(name, value, PROBABILITY)
    if mask_fraction + random_fraction > 1:
        raise UserError(
            f"mask_fraction={mask_fraction} and random_fraction={random_fraction} are more than 1 together; "
            "choose smaller fractions"
        )
    if tokenizer.mask_id is None:
        raise UserError("the tokenizer has no mask token; choose one with a special token of the role mask")
    is_special_V = np.zeros(tokenizer.vocab_size, bool)
    is_special_V[list(tokenizer.special_ids.values())] = True
    if is_special_V.all():
        raise UserError(
            "the tokenizer has only special tokens, so that no token can be masked; choose another"
        )
    words = _parts_of_words(tokenizer.token_names, is_special_V) if whole_words else None
    return MaskTokens(rate, tokenizer.mask_id, mask_fraction, random_fraction, is_special_V, words)


def _parts_of_words(token_names: tuple[str, ...], is_special_V: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns whether each token starts, and whether it ends, inside of a word.

    WordPiece marks a token that continues a word by ## before it. In other vocabularies, letters and digits
    that follow each other make a word.
    """
    names = ["" if special else name for name, special in zip(token_names, is_special_V, strict=True)]
    if any(name.startswith("##") and len(name) > 2 for name in names):
        return np.array([name.startswith("##") for name in names]), ~is_special_V
    starts = np.array([name[:1].isalnum() for name in names])
    return starts, np.array([name[-1:].isalnum() for name in names])


def _starts_of_words(
    tokens_T: jax.Array, starts_inside_V: np.ndarray, ends_inside_V: np.ndarray
) -> jax.Array:
    """Returns the position at which the word of each token starts."""
    ends_inside_T = jnp.asarray(ends_inside_V)[tokens_T]
    continues_T = jnp.asarray(starts_inside_V)[tokens_T] & jnp.pad(ends_inside_T[:-1], (1, 0))
    return jax.lax.cummax(jnp.where(continues_T, 0, jnp.arange(len(tokens_T))))
