"""Sources: examples with random access, as NumPy arrays."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np

from dl.errors import UserError
from dl.types import Batch, Source

_KINDS = "biufc"  # kinds of NumPy's number types: booleans, whole, real and complex numbers
_CHUNK = 1024  # examples read at once


class Resident(Source, Protocol):
    """A source whose rows a device can compute from arrays. If these are small, they stay on the device."""

    @property
    def arrays(self) -> Mapping[str, np.ndarray]: ...

    @property
    def nbytes(self) -> int:
        """Size of `arrays` in bytes, which does not read them."""
        ...

    def gather(self, arrays: Batch, index_B: jax.Array) -> Batch:
        """Returns the rows `index_B`, of any shape, from `arrays`. A pure function that can be jitted."""
        ...


@dataclass(frozen=True)
class ArraySource:
    """Examples held in memory.

    Attributes:
      arrays: arrays by feature name. The leading axis is the example and has the same length in every array.
        Values that NumPy converts to an array of numbers are accepted too: lists, JAX arrays, columns of
        pandas, and any byte order.

    Raises:
      UserError: there are no arrays, their lengths differ, or one has values that are missing or not numbers.
    """

    arrays: Mapping[str, np.ndarray]

    def __post_init__(self) -> None:
        object.__setattr__(self, "arrays", {name: _as_numbers(name, a) for name, a in self.arrays.items()})
        lengths = {name: array.shape[0] if array.ndim else None for name, array in self.arrays.items()}
        if not lengths or None in lengths.values() or len(set(lengths.values())) > 1:
            raise UserError(
                f"the arrays of a source have the lengths {lengths}; give one or more arrays, "
                "all of the same length"
            )

    @property
    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {name: jax.ShapeDtypeStruct(a.shape[1:], a.dtype) for name, a in self.arrays.items()}

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return {name: array[indices] for name, array in self.arrays.items()}

    @staticmethod  # one function for all sources, so that equal shapes are compiled once
    def gather(arrays: Batch, index_B: jax.Array) -> Batch:
        return {name: array[index_B] for name, array in arrays.items()}

    def take(self, indices: np.ndarray) -> "ArraySource":
        """Returns a source of the rows `indices`, in that order (a copy)."""
        return ArraySource(self[indices])

    def joined(self, others: Sequence["ArraySource"]) -> "ArraySource":
        """Returns a source of these rows and then those of others with the same features (a copy)."""
        of_each = [self.arrays, *(other.arrays for other in others)]
        return ArraySource(
            {name: np.concatenate([arrays[name] for arrays in of_each]) for name in self.arrays}
        )


def is_resident(source: Source) -> TypeGuard[Resident]:
    """Returns whether a source is `Resident`. Nothing is read."""
    return hasattr(type(source), "gather")


def bytes_each(source: Source) -> int:
    """Returns the size of one example of a source in memory, in bytes."""
    return sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in source.spec.values())


def chunks(size: int) -> Iterator[np.ndarray]:
    """Yields the rows 0, …, size - 1 in order, in parts that easily fit into memory."""
    for start in range(0, size, _CHUNK):
        yield np.arange(start, min(start + _CHUNK, size))


def _as_numbers(name: str, values: Any) -> np.ndarray:
    """Returns values as an array of numbers in the byte order of this machine, without a needless copy."""
    if np.ma.is_masked(values):
        row = int(np.argwhere(np.ma.getmaskarray(values))[0, 0])
        raise UserError(f"the array {name} has masked values, the first in row {row}; fill or remove them")
    try:
        array = np.asarray(values)
    except Exception as error:  # ragged lists, JAX keys, and errors of other libraries' conversions
        text = " ".join(str(error).split())[:200]
        raise UserError(
            f"the array {name} is not an array of numbers ({text}); give every example the same shape"
        ) from None
    if array.dtype.kind not in _KINDS and not jnp.issubdtype(array.dtype, np.number):
        advice = "give every example the same shape, without missing values"
        if array.dtype.kind in "US" or any(isinstance(value, str) for value in array.ravel()[:1]):
            advice = f"classes are whole numbers: names, {name} = np.unique({name}, return_inverse=True)"
        raise UserError(f"the array {name} holds {array.dtype} instead of numbers; {advice}")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
