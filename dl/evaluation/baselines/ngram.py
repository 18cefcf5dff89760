"""The baseline of a language model: a Kneser-Ney model of the same tokens, on the same rows.

Shapes: N rows, T tokens of a row, M tokens of all sequences.
"""

import dataclasses
from collections.abc import Callable, Mapping
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
    does not reach beyond the start of its row. It is fitted to the whole text of the training split if its
    source has a method `head`, such as `data.text.windows.TokenWindows`, and else to its rows. Data without a
    split for validation beside `test` have the order chosen on the last tenth of the training tokens.

    Attributes:
      max_order: the longest n-grams, the predicted token included: 1 for the unigram model, 2 for the bigram
        model.
      input_name: name of the feature that holds the tokens.
      padding_id: token that pads short sequences. `None` means that there is no padding, or that the data
        state it by `segment_ids` or `targets`.
      counts_first: whether the first token of a row is predicted too, as a decoder that begins with a start
        token does.
      max_tokens: largest number of training tokens that are counted. Of larger data the first tokens of the
        text are used, or rows at equal distances.
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
        splits = {
            name: _rows_of(source[np.arange(len(source))], self) for name, source in data.evaluations.items()
        }
        train = self._sequences(data.train)
        chosen_on = next((name for name in splits if name != FINAL_SPLIT), None)
        vocab_size = getattr(data, "vocab_size", None) or 1 + max(
            int(tokens.max(initial=0)) for tokens in (*train, *(rows.token_M for rows in splits.values()))
        )
        if chosen_on is None or FINAL_SPLIT not in splits:
            fitted, held_out = _divided(train)
            model = KneserNey.fit(fitted, vocab_size, self.max_order)
            order = _best(model, lambda order: model.losses(held_out, order).sum())
            model = KneserNey.fit(train, vocab_size, order)
        else:
            model = KneserNey.fit(train, vocab_size, self.max_order)
            order = _best(model, lambda order: splits[chosen_on].totals(model, order)[:, 0].sum())
        examples = {name: {"loss": rows.totals(model, order)} for name, rows in splits.items()}
        name = {1: "unigram", 2: "bigram"}.get(order, f"{order}-gram")
        return BaselineScores(f"{name} model, modified Kneser-Ney", examples)

    def _sequences(self, source: Source) -> list[np.ndarray]:
        """Returns the training tokens."""
        head = getattr(source, "head", None)
        if head is not None:
            return [head(self.max_tokens)]
        num_rows = max(1, self.max_tokens // int(np.prod(source.spec[self.input_name].shape)))
        return _rows_of(source[spaced(len(source), num_rows)], self).sequences


def spaced(num_rows: int, limit: int) -> np.ndarray:
    """Returns all rows of a source, or `limit` of them at equal distances."""
    return np.linspace(0, num_rows - 1, min(num_rows, limit)).astype(np.int64)


def _divided(sequences: list[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Returns the first nine tenths of the sequences, and the last tenth. A single one is cut."""
    if len(sequences) == 1:
        place = len(sequences[0]) * 9 // 10
        return [sequences[0][:place]], [sequences[0][place:]]
    place = max(1, len(sequences) * 9 // 10)
    return sequences[:place], sequences[place:]


def _best(model: KneserNey, loss_of: Callable[[int], float]) -> int:
    """Returns the order with the smallest loss."""
    return min(range(1, model.max_order + 1), key=loss_of)


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

    @property
    def sequences(self) -> list[np.ndarray]:
        return np.split(self.token_M, np.flatnonzero(self.starts_M)[1:])

    def totals(self, model: KneserNey, order: int) -> np.ndarray:
        """Returns the sum of the losses of each row and the number of its tokens that count, shape N × 2."""
        loss_M = model.losses(self.sequences, order)
        rows = self.row_M[self.counts_M]
        total_N = np.bincount(rows, loss_M[self.counts_M], self.num_rows)
        return np.stack([total_N, np.bincount(rows, minlength=self.num_rows)], -1)


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
