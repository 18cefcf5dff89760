"""The splits of a data set, as an experiment takes them."""

import dataclasses
import functools
import hashlib
from collections.abc import Collection, Iterable, Mapping
from typing import Protocol

import numpy as np

from dl.data.source import ArraySource, Source, bytes_each, chunks

MAX_CHECKSUM_BYTES = 2**30  # that one source may decode at the start for its checksum
NUM_SAMPLED = 1024


@dataclasses.dataclass(frozen=True)
class Identity:
    """Which data a number was measured on.

    Attributes:
      name: with its config, as in "colours/dark".
      version: as TFDS writes it, "3.0.1"; "1.0.0" of data that have none.
      checksum: SHA-256 (hex) over the decoded images and labels of all official splits, with names,
        shapes and dtypes. Of a set too large for memory, over its description and the names and
        sizes of its shards (of a folder of images: of its files).
      sizes: number of examples in each split as used.
      split_rule: how rows were taken from train, where they were; empty for a plain random draw.
    """

    name: str
    version: str
    checksum: str
    sizes: Mapping[str, int]
    split_rule: str = ""


def short_notice(notice: str | None) -> str:
    """Returns what of a notice stands beside every figure: its first line."""
    return next(iter((notice or "").splitlines()), "")


class Splits(Protocol):
    """What an experiment trains and is judged on.

    Attributes:
      train: the examples that are trained on.
      evaluations: by name; `test` is read once, at the end of the run, the others every epoch.
      identity: which data it is.
      provenance: how the data came, such as `read from the decoded cache in 0.2 s`.
      notice: what a person must know before trusting a figure, such as a fallback to other data. Its first
        line is short and stands beside every figure, all of it once where a reader begins.
    """

    @property
    def train(self) -> Source: ...
    @property
    def evaluations(self) -> Mapping[str, Source]: ...
    @property
    def identity(self) -> Identity: ...
    @property
    def provenance(self) -> str: ...
    @property
    def notice(self) -> str | None: ...


@dataclasses.dataclass(frozen=True)
class ArraySplits:
    """Splits that are sources of one's own: arrays in memory, or anything that reads rows.

    Its identity is a checksum of the content. A source that is not an `ArraySource` is read once for that, if
    it decodes at most `MAX_CHECKSUM_BYTES`; of a larger one count spec, length and `NUM_SAMPLED` rows at
    equal distances. A source with an attribute `checksum`, text that changes with its content, is not read.

    Attributes:
      name: what to call the data.
      train: the examples that are trained on.
      evaluations: by name.
      provenance: where they come from.
      notice: see `Splits`.
    """

    name: str
    train: Source
    evaluations: Mapping[str, Source] = dataclasses.field(default_factory=dict)
    provenance: str = "in memory"
    notice: str | None = None

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
                content.update(np.ascontiguousarray(array).tobytes())
        sizes = {split: len(source) for split, source in sources.items()}
        return Identity(self.name, "1.0.0", content.hexdigest(), sizes)


def _checksum(source: Source) -> str:
    """Returns the checksum of a source that is no array, as `ArraySplits` says."""
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
class ChangedSplits:
    """The splits of other data with changes; one that is left out is never asked for, so nobody can read it.

    Attributes:
      data: the other; the checksum stays that of all of it.
      own: splits in place of those of the same name, or beside them.
      without: names of evaluations that are left out.
      name_suffix: what follows the name of the data.
      provenance_suffix: likewise.
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
