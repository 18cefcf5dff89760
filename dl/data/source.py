"""Sources: examples by random access, as NumPy arrays."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dl.errors import UserError
from dl.types import Source

_KINDS = "biufc"  # of NumPy's own types: booleans, whole, real and complex numbers
_CHUNK = 1024  # examples read at once


@dataclass(frozen=True)
class ArraySource:
    """Examples held in memory.

    Attributes:
      arrays: by feature name; the leading axis counts examples and is as long in every array. Whatever NumPy
        makes an array of numbers of will do: lists, JAX arrays, columns of pandas; any byte order.

    Raises:
      UserError: without arrays, if their lengths differ, or if one holds no numbers or has gaps.
    """

    arrays: Mapping[str, np.ndarray]

    def __post_init__(self) -> None:
        object.__setattr__(self, "arrays", {name: _as_numbers(name, a) for name, a in self.arrays.items()})
        lengths = {name: array.shape[0] if array.ndim else None for name, array in self.arrays.items()}
        if not lengths or None in lengths.values() or len(set(lengths.values())) > 1:
            raise UserError(f"the arrays of a source need one common leading length; theirs are {lengths}")

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

    def take(self, indices: np.ndarray) -> "ArraySource":
        """Returns a source of the rows `indices`, in that order (a copy)."""
        return ArraySource(self[indices])


def bytes_each(source: Source) -> int:
    """Returns how many bytes one example of a source takes in memory."""
    return sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in source.spec.values())


def chunks(size: int) -> Iterator[np.ndarray]:
    """Yields the rows 0, …, size - 1 in order, as many at once as fit into memory with ease."""
    for start in range(0, size, _CHUNK):
        yield np.arange(start, min(start + _CHUNK, size))


def _as_numbers(name: str, values: Any) -> np.ndarray:
    """Returns values as an array of numbers in this machine's byte order, without a copy of what is one."""
    if np.ma.is_masked(values):
        row = int(np.argwhere(np.ma.getmaskarray(values))[0, 0])
        raise UserError(f"the array {name} has masked values, the first in row {row}; fill or leave them out")
    try:
        array = np.asarray(values)
    except Exception as error:  # ragged lists, keys of JAX, and whatever a library's conversion raises
        text = " ".join(str(error).split())[:200]
        raise UserError(
            f"the array {name} is no array of numbers ({text}); give every example one shape"
        ) from None
    if array.dtype.kind not in _KINDS and not jnp.issubdtype(array.dtype, np.number):
        advice = "give every example one shape, and numbers without gaps"
        if array.dtype.kind in "US" or any(isinstance(value, str) for value in array.ravel()[:1]):
            advice = f"classes are whole numbers: names, {name} = np.unique({name}, return_inverse=True)"
        raise UserError(f"the array {name} holds no numbers but {array.dtype}; {advice}")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
