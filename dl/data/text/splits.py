"""What all data of texts share: a tokenizer, sources that keep their texts, and the record of a run."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from dl.data.recorded import Recorded, sources_of
from dl.data.source import ArraySource
from dl.data.steps import CountsSteps
from dl.data.text.contract import Tokenizer
from dl.data.text.tokenizer import tokenizer_from_json
from dl.errors import UserError
from dl.ranges import Range, check_count
from dl.types import Identity, Preprocess, Source


@dataclass(frozen=True)
class TextSource(ArraySource):
    """Examples in memory that are made of texts, one of each column for an example.

    Attributes:
      texts: the texts by column, such as "text", or "source" and "target", in the order of the examples.
      lengths: number of tokens of each example, shape N; see `dl.data.buckets.OfLengths`.
      buckets: the lengths of batches.
    """

    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    lengths: np.ndarray = field(default_factory=lambda: np.zeros(0, int))
    buckets: tuple[int, ...] = ()

    def take(self, indices: np.ndarray) -> "TextSource":
        texts = {name: [values[row] for row in indices.tolist()] for name, values in self.texts.items()}
        lengths = self.lengths[indices] if self.buckets else self.lengths
        return TextSource(self[indices], texts, lengths, self.buckets)

    def joined(self, others: Sequence[ArraySource]) -> ArraySource:
        arrays = super().joined(others).arrays
        texts = {name: list(values) for name, values in self.texts.items()}
        for other in others:
            for name, values in texts.items():
                values += other.texts[name] if isinstance(other, TextSource) else [""] * len(other)
        parts = [part for part in (self, *others) if isinstance(part, TextSource) and part.buckets]
        if len(parts) <= len(others):  # a part whose lengths are not known
            return TextSource(arrays, texts)
        return TextSource(arrays, texts, np.concatenate([part.lengths for part in parts]), self.buckets)


@dataclass(frozen=True, kw_only=True)
class Tokenized:
    """Texts that were read and tokenized.

    Attributes:
      splits: the splits by name, "train" and those for evaluation.
      tokenizer: the tokenizer of all splits.
      identity: identity of the data.
      provenance: where the data came from, and what was left out.
      notice: warning for a reader; see `Splits`.
      class_names: name of each class; empty without classes.
    """

    splits: Mapping[str, Source]
    tokenizer: Tokenizer
    identity: Identity
    provenance: str
    notice: str | None = None
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TextSplits(CountsSteps, ABC):
    """Data of texts, which are read and tokenized once, when an attribute first needs them.

    Attributes:
      known: the record of a run, which replaces the data until an example is needed.
    """

    known: Recorded | None = None

    @property
    @abstractmethod
    def request(self) -> dict[str, Any]:
        """The arguments that made these data, as a run records them."""

    @abstractmethod
    def _tokenize(self, tokenizer: Tokenizer | None) -> Tokenized:
        """Reads the texts, and tokenizes them by the tokenizer of a run if there is one."""

    @property
    def train(self) -> Source:
        return self._made.splits["train"]

    @property
    def evaluations(self) -> dict[str, Source]:
        return {name: source for name, source in self._made.splits.items() if name != "train"}

    @property
    def tokenizer(self) -> Tokenizer:
        return self._made.tokenizer

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    @property
    def token_names(self) -> tuple[str, ...]:
        """The text of each token as a reader sees it."""
        return self.tokenizer.token_names

    @property
    def identity(self) -> Identity:
        return self._made.identity

    @property
    def provenance(self) -> str:
        return self._made.provenance

    @property
    def notice(self) -> str | None:
        """Warning for a reader, for example if other data are used than requested."""
        return self._made.notice

    @property
    def preprocess(self) -> Preprocess | None:
        return None

    @cached_property
    def _made(self) -> Tokenized:
        known = self.known
        if known is None:
            return self._tokenize(None)
        if known.tokenizer is None:
            raise UserError("run.json is damaged: the record of the data has no tokenizer; train again")
        tokenizer = tokenizer_from_json(known.tokenizer)
        return Tokenized(
            splits=sources_of(known, lambda: (self._read_again.identity, self._read_again.splits)),
            tokenizer=tokenizer,
            identity=known.identity,
            provenance="as the run recorded it",
            notice=known.notice,
            class_names=known.class_names,
        )

    @cached_property
    def _read_again(self) -> Tokenized:
        """The data themselves, with the tokenizer of the run."""
        return self._tokenize(self.tokenizer)


def check_buckets(buckets: Sequence[int], max_length: int) -> tuple[int, ...]:
    """Returns the lengths of batches below `max_length` in increasing order, and it as the last; or none.

    Raises:
      UserError: one is not a whole number of at least 1.
    """
    lengths = {check_count("buckets", length, Range(1)) for length in buckets}
    shorter = sorted(length for length in lengths if length < max_length)
    return (*shorter, max_length) if shorter else ()


def padded(rows: Sequence[Sequence[int]], length: int, padding: int) -> np.ndarray:
    """Returns the first `length` tokens of each row as int32, shape N × `length`, padded at the end."""
    result = np.full((len(rows), length), padding, np.int32)
    for values, row in zip(result, rows, strict=True):
        kept = row[:length]
        values[: len(kept)] = kept
    return result


def counted(tokenizer: Tokenizer, encoded: Sequence[list[int]], room: int) -> str:
    """Returns a note about texts of more than `room` tokens, and unknown tokens; empty if there are none."""
    notes = []
    if num_cut := sum(len(tokens) > room for tokens in encoded):
        notes.append(f"{num_cut:,} of {len(encoded):,} texts cut to {room} tokens")
    unknown = -1 if tokenizer.unknown_id is None else tokenizer.unknown_id
    if num_unknown := sum(tokens.count(unknown) for tokens in encoded):
        notes.append(f"{num_unknown:,} of {sum(map(len, encoded)):,} tokens unknown")
    return " and ".join(notes)
