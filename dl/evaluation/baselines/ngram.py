"""The baseline of a language model: a Kneser-Ney model of the same tokens, on the same rows.

Shapes: N rows, T tokens of a row, M tokens of all sequences.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from dl.evaluation.baselines.kneser_ney import KneserNey
from dl.losses import NOT_COUNTED
from dl.ranges import Range, check_count
from dl.stopping import FINAL_SPLIT
from dl.task import following_tokens
from dl.types import BaselineScores, Source, Splits

_MAX_ORDER = Range(1, 20)


@dataclasses.dataclass(frozen=True)
class NGram:
    """The n-gram model whose order is best on the validation split; see `kneser_ney`.

    Metric: `loss`, in nats per token. It counts the tokens that `task.language_model` counts, and a context
    does not reach beyond the start of its row. For training, rows that follow each other are joined. Data
    without a split for validation beside `test` have the order chosen on the last tenth of the training rows.

    Attributes:
      max_order: the longest n-grams, the predicted token included: 1 for the unigram model, 2 for the bigram
        model.
      input_name: name of the feature that holds the tokens.
      padding_id: token that pads short sequences. `None` means that there is no padding, or that the data
        state it by `segment_ids` or `targets`.
      counts_first: whether the first token of a row is predicted too, as a decoder that begins with a start
        token does.
      max_tokens: largest number of training tokens that are counted. Of larger data the first rows are used.
    """

    max_order: int = 8
    input_name: str = "tokens"
    padding_id: int | None = None
    counts_first: bool = False
    max_tokens: int = 10_000_000

    def __post_init__(self) -> None:
        check_count("max_order", self.max_order, _MAX_ORDER)

    def __call__(self, data: Splits) -> BaselineScores:
        """Fits the model and scores every split.

        Raises:
          UserError: a token is out of range of the vocabulary, or there are no tokens.
        """
        splits = {name: self._rows(source) for name, source in data.evaluations.items()}
        num_rows = max(1, self.max_tokens // int(np.prod(data.train.spec[self.input_name].shape)))
        train = self._rows(data.train, num_rows)
        chosen_on = next((name for name in splits if name != FINAL_SPLIT), None)
        vocab_size = getattr(data, "vocab_size", None) or 1 + max(
            int(rows.token_M.max(initial=0)) for rows in (train, *splits.values())
        )
        if chosen_on is None or FINAL_SPLIT not in splits:
            earlier, later = train.divided()
            order = _best_order(KneserNey.fit(earlier.sequences(), vocab_size, self.max_order), later)
            model = KneserNey.fit(train.sequences(), vocab_size, order)
        else:
            model = KneserNey.fit(train.sequences(), vocab_size, self.max_order)
            order = _best_order(model, splits[chosen_on])
        examples = {name: {"loss": rows.totals(model, order)} for name, rows in splits.items()}
        name = {1: "unigram", 2: "bigram"}.get(order, f"{order}-gram")
        return BaselineScores(f"{name} model, modified Kneser-Ney", examples)

    def _rows(self, source: Source, num_rows: int | None = None) -> "_Rows":
        num_rows = min(len(source), num_rows or len(source))
        return _rows_of(source[np.arange(num_rows)], self)


class _Rows(NamedTuple):
    """The sequences in the rows of a split, as one array.

    Attributes:
      token_M: the tokens.
      starts_M: whether a sequence starts at each token.
      counts_M: whether each token is predicted and counts.
      row_M: the row that the prediction of each token belongs to.
      num_rows: the number of rows, N.
    """

    token_M: np.ndarray
    starts_M: np.ndarray
    counts_M: np.ndarray
    row_M: np.ndarray
    num_rows: int

    def sequences(self) -> list[np.ndarray]:
        """Returns the sequences of tokens. Rows that follow each other are one sequence."""
        starts_M = self.starts_M
        first = np.flatnonzero(np.diff(self.row_M, prepend=-1))[1:]  # of each row but the first
        overlaps = starts_M[first].all() and np.array_equal(self.token_M[first - 1], self.token_M[first])
        token_M = self.token_M
        if len(first) and overlaps and starts_M.sum() == len(first) + 1:
            # The last target of a row is the first token of the next one, which is dropped.
            return [np.delete(token_M, first)]
        return np.split(token_M, np.flatnonzero(starts_M)[1:])

    def divided(self) -> tuple["_Rows", "_Rows"]:
        """Returns the first nine tenths of the rows, and the last tenth."""
        place = int(np.searchsorted(self.row_M, self.num_rows - max(1, self.num_rows // 10)))
        return self._of(slice(place)), self._of(slice(place, None))

    def _of(self, part: slice) -> "_Rows":
        return _Rows(
            self.token_M[part], self.starts_M[part], self.counts_M[part], self.row_M[part], self.num_rows
        )

    def totals(self, model: KneserNey, order: int) -> np.ndarray:
        """Returns the sum of the losses of each row and the number of its tokens that count, shape N × 2."""
        loss_M = model.losses(np.split(self.token_M, np.flatnonzero(self.starts_M)[1:]), order)
        rows = self.row_M[self.counts_M]
        total_N = np.bincount(rows, loss_M[self.counts_M], self.num_rows)
        return np.stack([total_N, np.bincount(rows, minlength=self.num_rows)], -1)


def _best_order(model: KneserNey, rows: _Rows) -> int:
    """Returns the order with the smallest loss."""
    losses = [rows.totals(model, order)[:, 0].sum() for order in range(1, model.max_order + 1)]
    return 1 + int(np.argmin(losses))


def _rows_of(features: Mapping[str, np.ndarray], how: NGram) -> _Rows:
    """Returns the sequences of rows with the features of `task.language_model`."""
    token_NT = features[how.input_name].astype(np.int64)
    needed = {how.input_name, "targets", "segment_ids"} & features.keys()
    batch = {name: jnp.asarray(features[name]) for name in needed}
    target_NT = np.asarray(following_tokens(batch, how.input_name, how.padding_id))
    if "segment_ids" in features:
        segment_NT = features["segment_ids"]
    elif how.padding_id is not None:
        segment_NT = (token_NT != how.padding_id).astype(np.int64)
    else:
        segment_NT = np.ones(token_NT.shape, np.int64)
    is_start_NT = np.diff(segment_NT, axis=1, prepend=0) != 0
    is_end_NT = np.diff(segment_NT, axis=1, append=0) != 0
    is_predicted_NT = np.roll(target_NT, 1, axis=1) != NOT_COUNTED
    is_predicted_NT[is_start_NT] = how.counts_first
    # After the last token of a segment comes its target, if there is one.
    has_more_NT = is_end_NT & (target_NT != NOT_COUNTED)
    is_valid_NT = segment_NT > 0
    num_M = (1 + has_more_NT[is_valid_NT]).astype(np.int64)
    more_M = np.cumsum(num_M)[num_M == 2] - 1
    token_M, starts_M, counts_M, row_M = (
        np.repeat(array[is_valid_NT], num_M)
        for array in (token_NT, is_start_NT, is_predicted_NT, np.indices(token_NT.shape)[0])
    )
    token_M[more_M] = target_NT[is_valid_NT][num_M == 2]
    starts_M[more_M], counts_M[more_M] = False, True
    return _Rows(token_M, starts_M, counts_M, row_M, len(token_NT))
