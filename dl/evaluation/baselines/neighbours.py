"""The baseline of a masked language model: a masked token from its two neighbours.

    p(w | l, r) = (c(l w r) + K q(w)) / (c(l · r) + K)
    q(w) = λ₁ p(w | left = l) + λ₂ p(w | right = r) + (1 - λ₁ - λ₂) p(w)

with counts c and relative frequencies p of the training tokens (add-one for p(w)). Where a neighbour is
masked or missing, its term is left out, the other weights are divided by their sum, and p(w | l, r) is q(w).
The λ and then K are chosen on the validation split (linear interpolation, Jelinek & Mercer 1980; Dirichlet
smoothing, MacKay & Peto 1995). A chosen token that is shown, and not replaced by the mask token, is the
original one in half of the cases, as in BERT's masking: there p = ½ [w is shown] + ½ p(w | l, r).

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

_STRENGTHS = (np.inf, 1.0, 3.0, 10.0, 30.0, 100.0)  # K; the first leaves out c(l w r)
_SHARES = (0.0, 0.2, 0.4, 0.45, 0.49, 0.6, 0.8)
_WEIGHTS = tuple((a, b) for a, b in itertools.product(_SHARES, _SHARES) if a + b < 0.99)
_SHOWN = 0.5
_CHUNK = 4096  # rows that are corrupted at once, and masked tokens whose sparse distributions are held


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
        settings = _Settings(0.0, 0.0, np.inf)
        if self.uses_neighbours:
            settings = _Settings(0.45, 0.45, 10.0)
            if chosen_on is not None and FINAL_SPLIT in splits:
                settings = model.best(splits[chosen_on])
        examples = {name: model.score(masked, settings) for name, masked in splits.items()}
        name = "unigram model"
        if self.uses_neighbours:
            weights = f"{settings.left:g} and {settings.right:g}, strength {settings.strength:g}"
            name = f"interpolated model of both neighbours, weights {weights}"
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

    def of(self, part: slice) -> "_Masked":
        """Returns a part of the masked tokens."""
        target_M, left_M, shown_M, right_M, row_M = (array[part] for array in self[:5])
        return _Masked(target_M, left_M, shown_M, right_M, row_M, self.num_rows)


class _Settings(NamedTuple):
    """λ₁, λ₂ and K."""

    left: float
    right: float
    strength: float


class _Lookup(NamedTuple):
    """The terms of the probability of each masked token: c(l w r), p(w | l), p(w | r) and p(w), shape M."""

    between_M: np.ndarray
    after_M: np.ndarray
    before_M: np.ndarray
    unigram_M: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Model:
    """Counts and relative frequencies of the training tokens.

    The sparse matrices have a last row that is empty, for contexts that are not known.

    Attributes:
      unigram_V: p(w).
      after: p(w | left), a sparse matrix of shape (V + 1) × V.
      before: p(w | right), of the same shape.
      between: c(left w right), a sparse matrix with a row for each pair (left, right).
      pairs: left (V + 1) + right of each row of `between`, increasing.
    """

    unigram_V: np.ndarray
    after: Any
    before: Any
    between: Any
    pairs: np.ndarray

    @classmethod
    def fit(cls, tokens_NT: np.ndarray, is_text_NT: np.ndarray, vocab_size: int) -> "_Model":
        is_pair = is_text_NT[:, :-1] & is_text_NT[:, 1:]
        first, second = tokens_NT[:, :-1][is_pair], tokens_NT[:, 1:][is_pair]
        is_triple = is_pair[:, :-1] & is_pair[:, 1:]
        left, middle, right = (tokens_NT[:, k : k + is_triple.shape[1]][is_triple] for k in range(3))
        pairs, place = np.unique(left.astype(np.int64) * (vocab_size + 1) + right, return_inverse=True)
        count_V = np.bincount(tokens_NT[is_text_NT], minlength=vocab_size) + 1.0
        after, before = (
            _relative(_counts(*pair, vocab_size, vocab_size)) for pair in ((first, second), (second, first))
        )
        between = _counts(place, middle, len(pairs), vocab_size)
        return cls(count_V / count_V.sum(), after, before, between, pairs)

    def best(self, masked: _Masked) -> _Settings:
        """Returns the settings with the smallest loss."""
        lookup = self._lookup(masked)

        def loss(settings: _Settings) -> float:
            return float(-np.log(self._probability(masked, lookup, settings)).sum())

        settings = min((_Settings(*pair, np.inf) for pair in _WEIGHTS), key=loss)
        return min((settings._replace(strength=strength) for strength in _STRENGTHS), key=loss)

    def score(self, masked: _Masked, settings: _Settings) -> dict[str, np.ndarray]:
        """Returns total and weight of each row for `loss` and `accuracy`, shape N × 2."""
        starts = range(0, len(masked.target_M), _CHUNK)
        predicted = [self._predicted(masked.of(slice(start, start + _CHUNK)), settings) for start in starts]
        is_right_M = np.concatenate([np.zeros(0, np.int64), *predicted]) == masked.target_M
        loss_M = -np.log(self._probability(masked, self._lookup(masked), settings))
        weight_N = np.bincount(masked.row_M, minlength=masked.num_rows)
        return {
            name: np.stack([np.bincount(masked.row_M, value_M, masked.num_rows), weight_N], -1)
            for name, value_M in (("loss", loss_M), ("accuracy", is_right_M))
        }

    def _rows(self, masked: _Masked) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the rows of `between`, `after` and `before` of each masked token."""
        key_M = masked.left_M.astype(np.int64) * (len(self.unigram_V) + 1) + masked.right_M
        place_M = np.searchsorted(self.pairs, key_M)
        is_found_M = (masked.left_M >= 0) & (masked.right_M >= 0) & (place_M < len(self.pairs))
        is_found_M[is_found_M] = self.pairs[place_M[is_found_M]] == key_M[is_found_M]
        return np.where(is_found_M, place_M, len(self.pairs)), masked.left_M, masked.right_M

    def _lookup(self, masked: _Masked) -> _Lookup:
        matrices = (self.between, self.after, self.before)
        between_M, after_M, before_M = (
            np.asarray(matrix[row_M, masked.target_M]).ravel()
            for matrix, row_M in zip(matrices, self._rows(masked), strict=True)
        )
        return _Lookup(between_M, after_M, before_M, self.unigram_V[masked.target_M])

    def _coefficients(self, masked: _Masked, settings: _Settings) -> np.ndarray:
        """Returns the factors of c(l w r), p(w | l), p(w | r) and p(w), shape 4 × M."""
        between_M, left_M, right_M = self._rows(masked)
        known = [
            np.diff(one.indptr)[row_M] > 0 for one, row_M in ((self.after, left_M), (self.before, right_M))
        ]
        rest = np.full(len(left_M), 1 - settings.left - settings.right)
        prior = np.stack([settings.left * known[0], settings.right * known[1], rest])
        prior /= prior.sum(0)
        if np.isinf(settings.strength):
            return np.concatenate([np.zeros((1, len(left_M))), prior])
        count_M = np.asarray(self.between.sum(1)).ravel()[between_M]
        total_M = count_M + settings.strength
        return np.concatenate([1 / total_M[None], settings.strength / total_M * prior])

    def _probability(self, masked: _Masked, lookup: _Lookup, settings: _Settings) -> np.ndarray:
        """Returns the probability of each masked token, shape M."""
        mixed_M = (self._coefficients(masked, settings) * np.stack(lookup)).sum(0)
        copied_M = _SHOWN * (masked.shown_M == masked.target_M) + (1 - _SHOWN) * mixed_M
        return np.where(masked.shown_M < 0, mixed_M, copied_M)

    def _predicted(self, masked: _Masked, settings: _Settings) -> np.ndarray:
        """Returns the most probable token in each masked place, shape M."""
        from scipy import sparse

        *factors, rest_M = self._coefficients(masked, settings)
        matrices = (self.between, self.after, self.before)
        near_MV = sparse.csr_array((len(rest_M), len(self.unigram_V)))
        for factor_M, matrix, row_M in zip(factors, matrices, self._rows(masked), strict=True):
            near_MV += sparse.diags_array(factor_M) @ matrix[row_M]
        # All other tokens are ordered by p(w) alone.
        near_MV = sparse.csr_array(near_MV)
        near_MV.data += np.repeat(rest_M, np.diff(near_MV.indptr)) * self.unigram_V[near_MV.indices]
        best_M, value_M = near_MV.argmax(1).ravel(), near_MV.max(1).toarray().ravel()
        common = int(self.unigram_V.argmax())
        best_M = np.where(value_M >= rest_M * self.unigram_V[common], best_M, common)
        return np.where(masked.shown_M < 0, best_M, masked.shown_M)


def _counts(given: np.ndarray, token: np.ndarray, num_given: int, vocab_size: int) -> Any:
    """Returns the counts of tokens for each given context, and an empty row after them."""
    from scipy import sparse

    ones = np.ones(len(given))
    counts = sparse.csr_array((ones, (given, token)), shape=(num_given + 1, vocab_size))
    counts.sum_duplicates()
    return counts


def _relative(counts: Any) -> Any:
    """Returns the relative frequencies of tokens in each row."""
    from scipy import sparse

    total = np.maximum(np.asarray(counts.sum(1)).ravel(), 1)
    return sparse.csr_array(sparse.diags_array(1 / total) @ counts)


def _is_text(features: Mapping[str, np.ndarray], input_name: str) -> np.ndarray:
    if "segment_ids" in features:
        return features["segment_ids"] > 0
    return np.ones(features[input_name].shape, bool)


def _evaluation_key(row: jax.Array) -> jax.Array:
    """Returns the key by which `task.masked_language_model` corrupts a row in evaluation."""
    return jax.random.fold_in(jax.random.key(0), row)
