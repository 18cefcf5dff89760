"""A record of the data of a run, so that its model can be used where the data are not available.

A run writes `record_of(experiment.data)` into run.json. Within `remembering`, `image_classification` with the
same arguments returns a data set whose classes and shapes come from that record. Files are only read if an
example is needed.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import jax
import numpy as np

from dl.data.splits import ChangedSplits
from dl.errors import UserError
from dl.types import Identity, Source, Splits

MAX_VALUES = 2**28  # in one example; a record with more is damaged

_remembered: ContextVar[Mapping[str, Any] | None] = ContextVar("recorded data", default=None)


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


def record_of(data: Splits) -> dict[str, Any]:
    """Returns the record of the examples for run.json: spec, names of classes, and the request."""
    while isinstance(data, ChangedSplits):
        data = data.data
    return {
        "spec": {
            name: {"shape": list(leaf.shape), "dtype": np.dtype(leaf.dtype).name}
            for name, leaf in data.train.spec.items()
        },
        "class_names": list(map(str, getattr(data, "class_names", ()))),
        "request": getattr(data, "request", None),
    }


@contextlib.contextmanager
def remembering(run_record: Mapping[str, Any] | None) -> Iterator[None]:
    """Returns a context in which `image_classification` uses the record of run.json; older runs have none."""
    token = _remembered.set(run_record)
    try:
        yield
    finally:
        _remembered.reset(token)


def remembered(request: Mapping[str, Any]) -> "Recorded | None":
    """Returns the record of a data set with these arguments, or None if there is none.

    Raises:
      UserError: the record is damaged.
    """
    run_record = _remembered.get() or {}
    record = run_record.get("data")
    if not isinstance(record, Mapping) or record.get("request") != request:
        return None
    try:
        return Recorded(record, run_record["dataset"], run_record.get("notice"))
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
    """

    def __init__(self, record: Mapping[str, Any], dataset: Mapping[str, Any], notice: str | None):
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
        _shape(self.spec["image"].shape), _positive(sizes["train"]), _positive(len(self.class_names))


def _shape(dimensions: Any) -> tuple[int, ...]:
    shape = tuple(map(_positive, dimensions))
    if math.prod(shape) > MAX_VALUES:
        raise ValueError(f"an example of shape {shape} is too large")
    return shape


def _positive(number: Any) -> int:
    if type(number) is not int or number < 1:
        raise ValueError(f"{number!r} is not a size")
    return number
