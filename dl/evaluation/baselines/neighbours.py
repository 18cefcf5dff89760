"""The baseline of a masked language model: a masked token from its two neighbours.

    p(w | l, r) = λ₁ p(w | left = l) + λ₂ p(w | right = r) + (1 - λ₁ - λ₂) p(w)

with relative frequencies of the training tokens (add-one for p(w)). Where a neighbour is masked or missing,
its term is left out and the other weights are divided by their sum. The λ are chosen on the validation split.
A chosen token that is shown, and not replaced by the mask token, is the original one in half of the cases, as
in BERT's masking: there p = ½ [w is shown] + ½ p(w | l, r).

Shapes: N rows, T tokens of a row, M masked tokens, V tokens in the vocabulary.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dl.evaluation.baselines.ngram import spaced
from dl.losses import NOT_COUNTED
from dl.stopping import FINAL_SPLIT
from dl.types import Augment, BaselineScores, Batch, Source, Splits

_SHARES = (0.0, 0.2, 0.4, 0.45, 0.49, 0.6, 0.8)
_WEIGHTS = tuple((a, b) for a, b in itertools.product(_SHARES, _SHARES) if a + b < 0.99)
_SHOWN = 0.5
_CHUNK = 4096  # rows that are corrupted at once


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """The interpolated model of the two neighbours of a masked token.

    Metrics: `loss`, in nats per masked token, and `accuracy`. The masks are those of the evaluation of
    `task.masked_language_model`: `corrupt` with the key fold_in(key(0), index).

    Attributes:
      corrupt: function that masks one example, the one that the task got.
      mask_id: the mask token.
      uses_neighbours: whether to use the neighbours. Without them this is the unigram model.
      input_name: name of the feature that holds the tokens.
      max_tokens: largest number of training tokens that are counted. Of larger data rows at equal distances
        are used.
    """

    corrupt: Augment
    mask_id: int
    uses_neighbours: bool = True
    input_name: str = "tokens"
    max_tokens: int = 10_000_000

    def __call__(self, data: Splits) -> BaselineScores:
        """Fits the model and scores every split."""
        corrupt = jax.jit(jax.vmap(lambda row, example: self.corrupt(_evaluation_key(row), example)))
        splits = {name: self._masked(source, corrupt) for name, source in data.evaluations.items()}
        num_rows = max(1, self.max_tokens // int(np.prod(data.train.spec[self.input_name].shape)))
        train = data.train[spaced(len(data.train), num_rows)]
        vocab_size = getattr(data, "vocab_size", None) or 1 + max(
            int(train[self.input_name].max()), self.mask_id, *(int(m.target_M.max()) for m in splits.values())
        )
        model = _Model.fit(train[self.input_name], _is_text(train, self.input_name), vocab_size)
        chosen_on = next((name for name in splits if name != FINAL_SPLIT), None)
        weights: tuple[float, float] = (0.0, 0.0)
        if self.uses_neighbours:
            weights = (0.45, 0.45)
            if chosen_on is not None and FINAL_SPLIT in splits:
                masked = splits[chosen_on]
                sides = model.sides(masked)
                weights = min(_WEIGHTS, key=lambda pair: -np.log(sides.probability(pair)).sum())
        examples = {name: model.sides(masked).score(weights) for name, masked in splits.items()}
        shown = ", ".join(f"{weight:g}" for weight in (*weights, 1 - sum(weights)))
        name = f"bigrams of both neighbours and unigram, weights {shown}" if sum(weights) else "unigram model"
        return BaselineScores(name, examples)

    def _masked(self, source: Source, corrupt: Callable[[jax.Array, Batch], Batch]) -> "_Masked":
        """Returns the tokens of a split that are predicted, with their neighbours."""
        parts = []
        for start in range(0, len(source), _CHUNK):
            rows = np.arange(start, min(start + _CHUNK, len(source)))
            features = source[rows]
            batch = {name: jnp.asarray(values) for name, values in features.items()}
            changed = corrupt(jnp.asarray(rows, jnp.int32), batch)
            tokens_NT, target_NT = (np.asarray(changed[name]) for name in (self.input_name, "targets"))
            is_known_NT = _is_text(features, self.input_name) & (tokens_NT != self.mask_id)
            known_NT = np.where(is_known_NT, tokens_NT, -1)
            row_M, place_M = np.nonzero(target_NT != NOT_COUNTED)
            edged_NT = np.pad(known_NT, ((0, 0), (1, 1)), constant_values=-1)
            left_M, shown_M, right_M = (edged_NT[row_M, place_M + shift] for shift in range(3))
            parts.append((target_NT[row_M, place_M], left_M, shown_M, right_M, rows[row_M]))
        target_M, left_M, shown_M, right_M, row_M = map(np.concatenate, zip(*parts, strict=True))
        return _Masked(target_M, left_M, shown_M, right_M, row_M, len(source))


class _Masked(NamedTuple):
    """Masked tokens: the token, its left neighbour, what is shown in its place, its right neighbour.

    -1 stands for a neighbour that is masked or missing, and where the mask token is shown.
    """

    target_M: np.ndarray
    left_M: np.ndarray
    shown_M: np.ndarray
    right_M: np.ndarray
    row_M: np.ndarray
    num_rows: int


@dataclasses.dataclass(frozen=True)
class _Model:
    """Relative frequencies of the training tokens.

    Attributes:
      unigram_V: p(w).
      after: p(w | left), a sparse matrix of shape (V + 1) × V. The last row is empty: no neighbour is known.
      before: p(w | right), of the same shape.
    """

    unigram_V: np.ndarray
    after: Any
    before: Any

    @classmethod
    def fit(cls, tokens_NT: np.ndarray, is_text_NT: np.ndarray, vocab_size: int) -> "_Model":
        is_pair = is_text_NT[:, :-1] & is_text_NT[:, 1:]
        first, second = tokens_NT[:, :-1][is_pair], tokens_NT[:, 1:][is_pair]
        count_V = np.bincount(tokens_NT[is_text_NT], minlength=vocab_size) + 1.0
        after, before = (_frequencies(*pair, vocab_size) for pair in ((first, second), (second, first)))
        return cls(count_V / count_V.sum(), after, before)

    def sides(self, masked: _Masked) -> "_Sides":
        """Returns the terms of the probability of each masked token."""
        left, right = (
            (matrix[neighbour_M], np.diff(matrix.indptr)[neighbour_M] > 0)
            for matrix, neighbour_M in ((self.after, masked.left_M), (self.before, masked.right_M))
        )
        return _Sides(self.unigram_V, masked, *left, *right)


class _Sides(NamedTuple):
    """The terms of p(w | l, r) for each masked token: sparse rows of shape M × V, and whether they count."""

    unigram_V: np.ndarray
    masked: _Masked
    after_MV: Any
    is_left_M: np.ndarray
    before_MV: Any
    is_right_M: np.ndarray

    def weights(self, weights: tuple[float, float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the weight of each term, of both neighbours and of p(w), shape M."""
        left_M, right_M = weights[0] * self.is_left_M, weights[1] * self.is_right_M
        rest = 1 - sum(weights)
        total_M = left_M + right_M + rest
        return left_M / total_M, right_M / total_M, rest / total_M

    def probability(self, weights: tuple[float, float]) -> np.ndarray:
        """Returns the probability of each masked token, shape M."""
        left_M, right_M, rest_M = self.weights(weights)
        target_M, shown_M = self.masked.target_M, self.masked.shown_M
        rows_M = np.arange(len(target_M))
        after_M, before_M = (
            np.asarray(one[rows_M, target_M]).ravel() for one in (self.after_MV, self.before_MV)
        )
        mixed_M = left_M * after_M + right_M * before_M + rest_M * self.unigram_V[target_M]
        copied_M = _SHOWN * (shown_M == target_M) + (1 - _SHOWN) * mixed_M
        return np.where(shown_M < 0, mixed_M, copied_M)

    def predicted(self, weights: tuple[float, float]) -> np.ndarray:
        """Returns the most probable token in each masked place, shape M."""
        from scipy import sparse

        left_M, right_M, rest_M = self.weights(weights)
        # The terms of the neighbours are sparse: all other tokens are ordered by p(w) alone.
        near_MV = sparse.diags_array(left_M) @ self.after_MV + sparse.diags_array(right_M) @ self.before_MV
        near_MV = sparse.csr_array(near_MV)
        near_MV.data += np.repeat(rest_M, np.diff(near_MV.indptr)) * self.unigram_V[near_MV.indices]
        best_M, value_M = near_MV.argmax(1).ravel(), near_MV.max(1).toarray().ravel()
        common = int(self.unigram_V.argmax())
        best_M = np.where(value_M >= rest_M * self.unigram_V[common], best_M, common)
        return np.where(self.masked.shown_M < 0, best_M, self.masked.shown_M)

    def score(self, weights: tuple[float, float]) -> dict[str, np.ndarray]:
        """Returns total and weight of each row for `loss` and `accuracy`, shape N × 2."""
        row_M, num_rows = self.masked.row_M, self.masked.num_rows
        values = {
            "loss": -np.log(self.probability(weights)),
            "accuracy": self.predicted(weights) == self.masked.target_M,
        }
        weight_N = np.bincount(row_M, minlength=num_rows)
        totals = {name: np.bincount(row_M, value_M, num_rows) for name, value_M in values.items()}
        return {name: np.stack([total_N, weight_N], -1) for name, total_N in totals.items()}


def _frequencies(given: np.ndarray, token: np.ndarray, vocab_size: int) -> Any:
    """Returns the relative frequencies of tokens for each given token; the last row, V, stays empty."""
    from scipy import sparse

    counts = sparse.csr_array(
        (np.ones(len(given)), (given, token)), shape=(vocab_size + 1, vocab_size), dtype=np.float64
    )
    counts.sum_duplicates()
    total_V = np.maximum(np.asarray(counts.sum(1)).ravel(), 1)
    return sparse.csr_array(sparse.diags_array(1 / total_V) @ counts)


def _is_text(features: Mapping[str, np.ndarray], input_name: str) -> np.ndarray:
    if "segment_ids" in features:
        return features["segment_ids"] > 0
    return np.ones(features[input_name].shape, bool)


def _evaluation_key(row: jax.Array) -> jax.Array:
    """Returns the key by which `task.masked_language_model` corrupts a row in evaluation."""
    return jax.random.fold_in(jax.random.key(0), row)
