"""What a run records of its data, so that its model can be made again and used where the data are not.

A run writes `record_of(experiment.data)` into run.json. While `remembering` that, `image_classification` with
the arguments of then returns a set that knows its classes and shapes from the record and looks for no file,
unless an example is asked for.
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

MAX_VALUES = 2**28  # in one example; more than that is no record of ours

_remembered: ContextVar[Mapping[str, Any] | None] = ContextVar("recorded data", default=None)


class RecordedSource:
    """A source of which spec and length are known; it is looked for when an example is asked for."""

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
    """Returns what run.json says of the examples beside the identity: spec, classes, what was asked for."""
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
    """Lets `image_classification` know what run.json says; of an older run it says nothing of examples."""
    token = _remembered.set(run_record)
    try:
        yield
    finally:
        _remembered.reset(token)


def remembered(request: Mapping[str, Any]) -> "Recorded | None":
    """Returns what is remembered of a set that is asked for by these arguments; None for any other.

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
            f"run.json does not describe the run's data any more ({error!r}); restore it, or train again"
        ) from None


class Recorded:
    """What a run's record says of its data.

    Attributes:
      spec: of one example.
      class_names: one a class.
      identity: of the data.
      notice: as of `Splits`.
    """

    def __init__(self, record: Mapping[str, Any], dataset: Mapping[str, Any], notice: str | None):
        """Raises KeyError, TypeError or ValueError where something is missing or absurd."""
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
        raise ValueError(f"an example of shape {shape}")
    return shape


def _positive(number: Any) -> int:
    if type(number) is not int or number < 1:
        raise ValueError(f"{number!r} is no size")
    return number
