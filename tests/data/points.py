"""Points with two classes, in splits and in sources of other kinds."""

import dataclasses

import numpy as np

from dl.data import ArraySource, ArraySplits
from dl.data.images.decoding import to_unit_range
from dl.types import Identity


class Streamed:
    """A source that is no array; what it reads is counted."""

    def __init__(self, source, may_be_read=True):
        self.source, self.may_be_read = source, may_be_read

    spec = property(lambda self: self.source.spec)

    def __len__(self):
        return len(self.source)

    def __getitem__(self, indices):
        assert self.may_be_read, "the test split was read"
        return self.source[indices]


IDENTITY = Identity("points", "1.0.0", "c" * 64, {"train": 22, "validation": 8, "test": 5})


@dataclasses.dataclass(frozen=True)
class Data:
    """Splits whose test split fails when a row is read."""

    train: object
    validation: object
    identity: Identity = IDENTITY
    provenance: str = "in memory"
    notice: str | None = "a caveat"
    preprocess: object = to_unit_range

    @property
    def evaluations(self):
        return {"validation": self.validation, "test": Streamed(points(5, 2), may_be_read=False)}


def points(size, seed):
    features = np.random.default_rng(seed).normal(size=(size, 3)).astype(np.float32)
    return ArraySource({"features": features, "label": np.arange(size, dtype=np.int32) % 2})


def data_of(wrap=lambda source: source):
    return Data(wrap(points(22, 0)), wrap(points(8, 1)))


def with_three_splits():
    return ArraySplits("points", points(22, 0), {"validation": points(8, 1), "test": points(5, 2)})
