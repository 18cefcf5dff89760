"""A record of the data of a run, so that its model can be used where the data are not available.

A run writes `record_of(experiment.data)` into run.json, and `files_of(experiment.data)` beside it. Within
`remembering`, `image_classification` and the functions of `dl.data.text` with the same arguments return a
data set whose classes, shapes and tokenizer come from that record. The data are only read if an example is
needed.
"""

import contextlib
import functools
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dl.data.splits import ChangedSplits
from dl.data.text.contract import Tokenizer
from dl.errors import UserError
from dl.system.files import read_regular
from dl.types import Identity, Source, Splits

TOKENIZER = "tokenizer.json"  # its name in the folder of a run
MAX_BYTES = 2**28  # of it
MAX_VALUES = 2**28  # in one example; a record with more is damaged

_remembered: ContextVar[tuple[Mapping[str, Any], Path | None]] = ContextVar("recorded data")


def sources_of(
    known: "Recorded", read: Callable[[], tuple[Identity, Mapping[str, Source]]]
) -> dict[str, "RecordedSource"]:
    """Returns the splits of the data of a run. The data themselves are read when an example is needed.

    Args:
      known: the record of the data.
      read: returns the identity of the data themselves, and their splits.
    """

    def find(split: str) -> Source:
        (present, splits), recorded = read(), known.identity
        if present.checksum != recorded.checksum:
            raise UserError(
                f"the run was trained on {recorded.name} (sha256 {recorded.checksum[:12]}), but the present "
                f"data are {present.name} (sha256 {present.checksum[:12]}); give the folder of the same data "
                "with --data-dir"
            )
        return splits[split]

    return {
        name: RecordedSource(known.spec, size, functools.partial(find, name))
        for name, size in known.identity.sizes.items()
    }


class RecordedSource:
    """A source with a known spec and length. Its files are searched for when an example is read."""

    def __init__(self, spec: Mapping[str, jax.ShapeDtypeStruct], size: int, find: Callable[[], Source]):
        self._spec, self._size, self._find = spec, size, find

    @property
    def spec(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        return self._spec

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return self._find()[indices]

    @property
    def texts(self) -> Mapping[str, Sequence[str]]:
        """The texts of a source that keeps them."""
        return getattr(self._find(), "texts", {})


def record_of(data: Splits) -> dict[str, Any]:
    """Returns the record of the examples for run.json: spec, names of classes, tokenizer, and the request."""
    data, tokenizer = itself(data), _tokenizer_of(data)
    return {
        "spec": {
            name: {"shape": list(leaf.shape), "dtype": np.dtype(leaf.dtype).name}
            for name, leaf in data.train.spec.items()
        },
        "class_names": list(map(str, getattr(data, "class_names", ()))),
        **({} if tokenizer is None else {"tokenizer": tokenizer.digest}),
        "request": getattr(data, "request", None),
    }


def files_of(data: Splits) -> dict[str, str]:
    """Returns the files that the folder of a run needs beside run.json: their texts, by name."""
    tokenizer = _tokenizer_of(data)
    return {} if tokenizer is None else {TOKENIZER: tokenizer.to_json()}


def _tokenizer_of(data: Splits) -> Tokenizer | None:
    tokenizer = getattr(itself(data), "tokenizer", None)
    return tokenizer if isinstance(tokenizer, Tokenizer) else None


def itself(data: Splits) -> Splits:
    """Returns the data that changed splits, such as folds, are made of."""
    while isinstance(data, ChangedSplits):
        data = data.data
    return data


@contextlib.contextmanager
def remembering(run_record: Mapping[str, Any] | None, folder: Path | None = None) -> Iterator[None]:
    """Returns a context in which data sets with the same arguments use the record of a run.

    Args:
      run_record: the content of run.json; runs of older versions have no record of their data.
      folder: the folder of the run.
    """
    token = _remembered.set((run_record or {}, folder))
    try:
        yield
    finally:
        _remembered.reset(token)


def remembered(
    request: Mapping[str, Any], features: Iterable[str], *, has_classes: bool = False
) -> "Recorded | None":
    """Returns the record of a data set with these arguments, or None if there is none.

    Args:
      request: the arguments.
      features: names of the features that an example must have.
      has_classes: whether there must be classes.

    Raises:
      UserError: the record, or the file of the tokenizer, is damaged or missing.
    """
    run_record, folder = _remembered.get(({}, None))
    record = run_record.get("data")
    if not isinstance(record, Mapping) or record.get("request") != request:
        return None
    try:
        found = Recorded(record, run_record["dataset"], run_record.get("notice"), folder)
        for feature in features:
            _shape(found.spec[feature].shape)
        if has_classes:
            _positive(len(found.class_names))
        return found
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"run.json is damaged: the record of the data is not valid ({error!r}); restore it, or train "
            "again"
        ) from None


class Recorded:
    """The data of a run as its record describes them.

    Attributes:
      spec: shape and dtype of one example, by feature name.
      class_names: name of each class.
      identity: identity of the data.
      notice: warning for a reader; see `Splits`.
      tokenizer: definition of the tokenizer as JSON; `None` if there is none.
    """

    def __init__(
        self,
        record: Mapping[str, Any],
        dataset: Mapping[str, Any],
        notice: str | None,
        folder: Path | None = None,
    ):
        """Raises KeyError, TypeError or ValueError if an entry is missing or not valid."""
        self.spec = {
            str(name): jax.ShapeDtypeStruct(_shape(leaf["shape"]), np.dtype(leaf["dtype"]))
            for name, leaf in record["spec"].items()
        }
        self.class_names = tuple(map(str, record["class_names"]))
        sizes = {str(split): _positive(size) for split, size in dataset["sizes"].items()}
        name, version, checksum = (str(dataset[key]) for key in ("name", "version", "checksum"))
        self.identity = Identity(name, version, checksum, sizes, str(dataset.get("split_rule", "")))
        self.notice = None if notice is None else str(notice)
        _positive(sizes["train"])
        digest = record.get("tokenizer")
        self.tokenizer = None if digest is None else _tokenizer(str(digest), folder)


def _tokenizer(digest: str, folder: Path | None) -> str:
    """Returns the content of the file of the tokenizer, whose digest a run recorded."""
    if folder is None:
        raise ValueError("its tokenizer is in the folder of the run")
    path = folder / TOKENIZER
    try:
        content = read_regular(path, MAX_BYTES)
    except FileNotFoundError:
        raise UserError(f"{path} is missing, which holds the tokenizer of the run; restore it") from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise UserError(f"{path} is damaged: it does not match the digest in run.json; restore it")
    return content.decode()


def _shape(dimensions: Any) -> tuple[int, ...]:
    shape = tuple(map(_positive, dimensions))
    if math.prod(shape) > MAX_VALUES:
        raise ValueError(f"an example of shape {shape} is too large")
    return shape


def _positive(number: Any) -> int:
    if type(number) is not int or number < 1:
        raise ValueError(f"{number!r} is not a size")
    return number
