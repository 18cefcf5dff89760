"""The splits of a data set, in the form that an experiment uses."""

import dataclasses
import functools
import hashlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from dl.data.images.decoding import to_unit_range
from dl.data.source import ArraySource, bytes_each, chunks
from dl.data.steps import CountsSteps
from dl.types import Identity, Preprocess, Source, Splits

MAX_CHECKSUM_BYTES = 2**30  # A larger source is not decoded completely for its checksum.
_HASHED_BYTES = 2**24  # of a feature at once
NUM_SAMPLED = 1024


def short_notice(notice: str | None) -> str:
    """Returns the first line of a notice, which is shown beside every result; empty without a notice."""
    return next(iter((notice or "").splitlines()), "")


@dataclasses.dataclass(frozen=True)
class ArraySplits(CountsSteps):
    """Splits from your own sources: arrays in memory, or other implementations of `Source`.

    The identity contains a checksum of the content. A source that is not an `ArraySource` is read once for
    the checksum if it decodes to at most `MAX_CHECKSUM_BYTES`. For a larger source the checksum is over its
    spec, its length and `NUM_SAMPLED` rows at equal distances. A source with an attribute `checksum`, a text
    that changes with its content, is not read.

    Attributes:
      name: name of the data.
      train: the training examples.
      evaluations: the evaluation splits by name.
      provenance: where the data come from.
      notice: warning for a reader; see `Splits`.
      preprocess: function from a stored batch to the model's input; see `Splits`. By default the pixels of
        the input become floats in [0, 1], and no other feature changes.
    """

    name: str
    train: Source
    evaluations: Mapping[str, Source] = dataclasses.field(default_factory=dict)
    provenance: str = "in memory"
    notice: str | None = None
    preprocess: Preprocess | None = to_unit_range

    @functools.cached_property
    def identity(self) -> Identity:
        content = hashlib.sha256()
        sources = {"train": self.train, **self.evaluations}
        for split, source in sources.items():
            if not isinstance(source, ArraySource):
                content.update(f"{split} {_checksum(source)} ".encode())
                continue
            for name, array in sorted(source.arrays.items()):
                content.update(f"{split} {name} {array.dtype.name} {array.shape} ".encode())
                rows = max(1, _HASHED_BYTES * len(array) // max(array.nbytes, 1))
                for start in range(0, len(array), rows):  # a part at a time, so that no copy is large
                    content.update(np.ascontiguousarray(array[start : start + rows]).tobytes())
        sizes = {split: len(source) for split, source in sources.items()}
        return Identity(self.name, "1.0.0", content.hexdigest(), sizes)


def _checksum(source: Source) -> str:
    """Returns the checksum of a source that is not an `ArraySource`, as `ArraySplits` documents it."""
    stated = getattr(source, "checksum", None)
    if isinstance(stated, str):
        return stated
    spec, size = sorted(source.spec.items()), len(source)
    described = [(name, np.dtype(leaf.dtype).name, tuple(leaf.shape)) for name, leaf in spec]
    digest = hashlib.sha256(f"{described} {size} ".encode())
    rows_of_parts: Iterable[np.ndarray] = chunks(size)
    if size * bytes_each(source) > MAX_CHECKSUM_BYTES:
        rows_of_parts = [np.linspace(0, size - 1, min(size, NUM_SAMPLED)).astype(np.int64)]
    for rows in rows_of_parts:
        part = source[rows]
        for name, _ in spec:
            digest.update(np.ascontiguousarray(part[name]).tobytes())
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class ChangedSplits(CountsSteps):
    """Changed splits of other data. A split that is left out is never read.

    Attributes:
      data: the other data. The checksum is that of all of them.
      own: splits that replace those of the same name, or are added.
      without: names of evaluation splits that are left out.
      name_suffix: text after the name of the data.
      provenance_suffix: text after the provenance of the data.
    """

    data: Splits
    own: Mapping[str, Source] = dataclasses.field(default_factory=dict)
    without: Collection[str] = ()
    name_suffix: str = ""
    provenance_suffix: str = ""

    @property
    def train(self) -> Source:
        return self.own.get("train", self.data.train)

    @property
    def evaluations(self) -> Mapping[str, Source]:
        kept = {name: source for name, source in self.data.evaluations.items() if name not in self.without}
        return kept | {name: source for name, source in self.own.items() if name != "train"}

    @property
    def identity(self) -> Identity:
        identity = self.data.identity
        kept = {name: size for name, size in identity.sizes.items() if name not in self.without}
        sizes = kept | {name: len(source) for name, source in self.own.items()}
        return dataclasses.replace(identity, name=identity.name + self.name_suffix, sizes=sizes)

    @property
    def provenance(self) -> str:
        return self.data.provenance + self.provenance_suffix

    @property
    def notice(self) -> str | None:
        return self.data.notice

    @property
    def preprocess(self) -> Preprocess | None:
        return self.data.preprocess

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the other data; `None` if they have none."""
        return getattr(self.data, "tokenizer", None)
