"""The interpolated n-gram model with modified Kneser-Ney discounts, over integer tokens.

With c the counts of an order, h the context of a token w, and h' the context without its first token,

    p(w | h) = max(c(h w) - D(c(h w)), 0) / c(h) + γ(h) p(w | h')
    γ(h) = (D₁ N₁(h) + D₂ N₂(h) + D₃ N₃₊(h)) / c(h)

where c(h) = Σ_w c(h w), and N_r(h) is the number of tokens that follow h exactly r times (N₃₊: three times or
more). The counts of the highest order are those of the text. In a lower order c(h w) is the number of
different tokens that precede h w, or the count in the text where h w begins with the start of a sequence. The
lowest order is interpolated with the uniform distribution. With n_r the number of n-grams of count r, the
discounts of an order are D_r = r - (r + 1) Y n_{r+1} / n_r with Y = n₁ / (n₁ + 2 n₂). If one of the n_r is 0
or a discount is not in [0, r], they are ½, 1 and 1½, as in KenLM. (Chen & Goodman 1998, An empirical study of
smoothing techniques for language modeling, section 4.1.6; Kneser & Ney 1995.)

Shapes: N tokens of all sequences with their starts, U different n-grams of an order, V tokens in the
vocabulary.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from dl.errors import UserError

_FALLBACK = np.array([0.0, 0.5, 1.0, 1.5])


class _Discounted(NamedTuple):
    """One order with one kind of counts.

    Attributes:
      share: max(c(h w) - D, 0) / c(h) of each n-gram, shape U.
      left: γ(h) of each context, one for each n-gram of the order below.
    """

    share: np.ndarray
    left: np.ndarray


class _Order(NamedTuple):
    """The n-grams of one order that the text has.

    Attributes:
      keys: context (V + 1) + token of each n-gram, increasing, int64, shape U. The context is the place of
        the first n - 1 tokens among the keys of the order below; it is 0 for order 1.
      highest: the order with the counts of the text.
      lower: the order with the counts of preceding tokens.
    """

    keys: np.ndarray
    highest: _Discounted
    lower: _Discounted


@dataclasses.dataclass(frozen=True)
class KneserNey:
    """A fitted model. `fit` makes one; see the module for its equations.

    Attributes:
      vocab_size: V, the number of tokens.
      max_order: the longest n-grams that were counted. The model of every order up to it can be used.
    """

    vocab_size: int
    max_order: int
    _orders: tuple[_Order, ...]

    @classmethod
    def fit(
        cls,
        sequences: Sequence[ArrayLike],
        vocab_size: int,
        max_order: int,
        discount: float | None = None,
    ) -> "KneserNey":
        """Counts the n-grams of sequences of tokens, all at once by sorting.

        Args:
          sequences: sequences of tokens in [0, `vocab_size`). No n-gram spans two of them.
          vocab_size: V, the number of tokens.
          max_order: the longest n-grams that are counted.
          discount: one discount for all counts, in [0, 1], as in the Kneser-Ney model that is not modified.
            Default: the discounts of the counts 1, 2, and 3 or more, from the counts of each order.

        Raises:
          UserError: a token is out of range, or there are no tokens.
        """
        stream_N, is_token_N = _with_starts(sequences, vocab_size, max_order)
        if not is_token_N.any():
            raise UserError("an n-gram model needs at least one token; the training sequences are empty")
        all_keys, raw, suffix, is_first = [], [], [], []
        id_N = np.zeros(len(stream_N), np.int64)  # of the n-gram that ends at each token
        begins_N = stream_N == vocab_size  # whether that n-gram begins with a start
        before_N = id_N
        for order in range(1, max_order + 1):
            keys_U, first_U, id_N = np.unique(
                _shifted(id_N) * (vocab_size + 1) + stream_N, return_index=True, return_inverse=True
            )
            if order > 1:
                begins_N = np.concatenate([[True], begins_N[:-1]])
            all_keys.append(keys_U)
            raw.append(np.bincount(id_N[is_token_N], minlength=len(keys_U)))
            suffix.append(before_N[first_U])
            is_first.append(begins_N[first_U])
            before_N = id_N
        orders = []
        for k, keys_U in enumerate(all_keys):
            context_U = keys_U // (vocab_size + 1)
            num_contexts = len(all_keys[k - 1]) if k else 1
            lower_U = raw[k]
            if k + 1 < max_order:
                extensions = suffix[k + 1][raw[k + 1] > 0]
                preceding_U = np.bincount(extensions, minlength=len(keys_U))
                lower_U = np.where(is_first[k], raw[k], preceding_U)
            highest = _discounted(raw[k], context_U, num_contexts, discount)
            lower = _discounted(lower_U, context_U, num_contexts, discount)
            orders.append(_Order(keys_U, highest, lower))
        return cls(vocab_size, max_order, tuple(orders))

    def losses(self, sequences: Sequence[ArrayLike], order: int | None = None) -> np.ndarray:
        """Returns -log p of each token of all sequences given the tokens before it, in nats.

        Args:
          sequences: sequences of tokens. A context does not reach beyond the start of its sequence.
          order: the length of the n-grams, the token included. Default: `max_order`.

        Returns:
          The losses of all tokens, one sequence after the other, shape: the number of tokens.
        """
        stream_N, is_token_N = _with_starts(sequences, self.vocab_size, self.max_order)
        order = self._checked(order)
        id_N = np.zeros(len(stream_N), np.int64)
        probability_N = np.full(len(stream_N), 1 / self.vocab_size)
        for k in range(order):
            keys_U = self._orders[k].keys
            context_N = _shifted(id_N)
            key_N = np.where(context_N < 0, -1, context_N * (self.vocab_size + 1) + stream_N)
            place_N = np.minimum(np.searchsorted(keys_U, key_N), len(keys_U) - 1)
            id_N = np.where(keys_U[place_N] == key_N, place_N, -1)
            share_U, left_C = self._orders[k].highest if k + 1 == order else self._orders[k].lower
            share_N = np.where(id_N >= 0, share_U[id_N], 0.0)
            left_N = np.where(context_N >= 0, left_C[context_N], 1.0)
            probability_N = share_N + left_N * probability_N
        return -np.log(probability_N[is_token_N])

    def probabilities(self, context: ArrayLike, order: int | None = None) -> np.ndarray:
        """Returns the distribution of the token after `context`, the beginning of a sequence, shape V."""
        context = np.asarray(context, np.int64)
        candidates = [np.append(context, token) for token in range(self.vocab_size)]
        return np.exp(-self.losses(candidates, order).reshape(self.vocab_size, -1)[:, -1])

    def _checked(self, order: int | None) -> int:
        order = self.max_order if order is None else order
        if not 1 <= order <= self.max_order:
            raise UserError(f"order={order} was not counted; choose 1 to {self.max_order}")
        return order


def _shifted(id_N: np.ndarray) -> np.ndarray:
    """Returns the n-gram that ends at the token before each token. Every sequence begins with starts."""
    return np.concatenate([id_N[:1] * 0, id_N[:-1]])


def _with_starts(
    sequences: Sequence[ArrayLike], vocab_size: int, max_order: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns all sequences, each after max_order - 1 starts (the number V), and where the tokens are."""
    starts = np.full(max_order - 1, vocab_size, np.int64)
    arrays = [np.asarray(sequence) for sequence in sequences]
    stream_N = np.concatenate([part for array in arrays for part in (starts, array)] or [starts])
    is_token = [np.repeat([False, True], [len(starts), len(array)]) for array in arrays]
    is_token_N = np.concatenate(is_token or [np.zeros(len(starts), bool)])
    tokens = stream_N[is_token_N]
    if tokens.size and not 0 <= tokens.min() <= tokens.max() < vocab_size:
        wrong = tokens[(tokens < 0) | (tokens >= vocab_size)][0]
        raise UserError(f"the token {wrong} is not in [0, {vocab_size}); give the size of the vocabulary")
    return stream_N.astype(np.int64), is_token_N


def _discounted(
    count_U: np.ndarray, context_U: np.ndarray, num_contexts: int, discount: float | None
) -> _Discounted:
    """Returns the discounted shares of one order with the counts `count_U`."""
    discounts = _discounts(count_U) if discount is None else discount * np.array([0, 1, 1, 1])
    class_U = np.minimum(count_U, 3)
    total_C = np.bincount(context_U, count_U, num_contexts)
    saved_C = np.bincount(context_U, discounts[class_U], num_contexts)
    kept_U = np.maximum(count_U - discounts[class_U], 0.0)
    left_C = np.where(total_C > 0, saved_C / np.maximum(total_C, 1), 1.0)
    return _Discounted(kept_U / np.maximum(total_C[context_U], 1), left_C)


def _discounts(count_U: np.ndarray) -> np.ndarray:
    """Returns the discounts of the counts 0, 1, 2 and 3 or more."""
    n = np.bincount(np.minimum(count_U, 5), minlength=6)[1:5].astype(np.float64)
    if not n.all():
        return _FALLBACK
    r = np.arange(1.0, 4.0)
    found = r - (r + 1) * n[0] / (n[0] + 2 * n[1]) * n[1:] / n[:3]
    return np.append(0.0, found) if ((found >= 0) & (found <= r)).all() else _FALLBACK
