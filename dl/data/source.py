"""Sources: examples by random access, as NumPy arrays."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import jax
import numpy as np

from dl.errors import UserError


class Source(Protocol):
    """A finite sequence of examples that any rows can be read from, in any order.

    Building one does no I/O. `__getitem__` may be called from several threads.

    Attributes:
      spec: shape and dtype of ONE example (no batch axis), by feature name.
    """

    @property
    def spec(self) -> Mapping[str, jax.ShapeDtypeStruct]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the rows `indices`, in that order, stacked along a leading axis."""
        ...


@dataclass(frozen=True)
class ArraySource:
    """Examples held in memory.

    Attributes:
      arrays: by feature name; the leading axis counts examples and is as long in every array.

    Raises:
      UserError: without arrays, or if their lengths differ.
    """

    arrays: Mapping[str, np.ndarray]

    def __post_init__(self) -> None:
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
