"""Labels of channels: indices of axes that can only be removed together have the same label.

Every axis of every array of a traced function has one label for each of its indices. An operation passes
labels on, or unites those of its operands. So the channels of a residual sum have the same labels as those of
all its summands, and a flattened feature map has the label of a channel once for each pixel.

An axis of None cannot be pruned at all. It is the same as an axis whose labels are all `FROZEN`.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Axis = np.ndarray | None
FROZEN = 0


@dataclasses.dataclass(frozen=True)
class Value:
    """What is known of an array of a traced function.

    Attributes:
      axes: the labels of the indices of each axis.
      is_zero: for each axis, whether the array is 0 where a channel of this axis is masked: where all
        parameters of the channel are 0.
      is_magnitude: whether no element is negative, so that zeros do not change the largest one.
    """

    axes: tuple[Axis, ...]
    is_zero: tuple[bool, ...]
    is_magnitude: bool = False


class Labels:
    """A union of labels that grows while a function is traced (Galler & Fischer 1964)."""

    def __init__(self) -> None:
        self._parent = np.zeros(1024, np.int64)
        self._num_labels = 1

    def fresh(self, size: Any) -> Axis:
        """Returns new labels of an axis; None if its size is not known."""
        if not isinstance(size, int | np.integer):
            return None
        end = self._num_labels + int(size)
        while end > len(self._parent):
            self._parent = np.concatenate([self._parent, np.zeros_like(self._parent)])
        labels = np.arange(self._num_labels, end)
        self._parent[labels] = labels
        self._num_labels = end
        return labels

    def find(self, axis: np.ndarray) -> np.ndarray:
        """Returns one label for each class of united labels; `FROZEN` is that of its class."""
        root = self._parent[axis]
        while True:
            above = self._parent[root]
            if np.array_equal(above, root):
                break
            root = above
        self._parent[axis] = root
        return root

    def freeze(self, *axes: Axis) -> None:
        """States that these indices cannot be removed."""
        for axis in axes:
            if axis is not None:
                self._parent[self.find(axis)] = FROZEN

    def unite(self, one: Axis, other: Axis) -> Axis:
        """States that equal positions of two axes are removed together, and returns their labels."""
        if one is None or other is None:
            self.freeze(one, other)
            return None
        first, second = self.find(one), self.find(other)
        differ = first != second
        for a, b in zip(first[differ], second[differ], strict=True):
            low, high = sorted((self._root(a), self._root(b)))
            self._parent[high] = low  # the lowest label is FROZEN
        return one

    def is_live(self, axis: Axis) -> bool:
        """Returns whether an index of the axis may be removed."""
        return axis is not None and bool(self.find(axis).any())

    def reshaped(self, value: Value, old: Sequence[Any], new: Sequence[Any]) -> Value:
        """Returns the labels of a reshaped array.

        An axis of channels that is merged with others, such as by flattening, has each of its labels several
        times. An axis that is split, such as into heads, is pruned along one of its parts only: the first, if
        no labels were united before.
        """
        left = 0
        while left < min(len(old), len(new)) and _same(old[left], new[left]):
            left += 1
        right = 0
        while right < min(len(old), len(new)) - left and _same(old[-1 - right], new[-1 - right]):
            right += 1
        middle = list(range(left, len(old) - right))
        sizes = list(new[left : len(new) - right])
        axes: list[Axis] = list(value.axes[:left])
        zeros = list(value.is_zero[:left])
        if (
            all(isinstance(size, int | np.integer) for size in [*(old[at] for at in middle), *sizes])
            and 0 not in sizes
        ):
            for group, parts in _factors([old[at] for at in middle], sizes):
                labels, is_zero = self._merged(value, [middle[at] for at in group], old)
                axes += self._split(labels, parts)
                zeros += [is_zero] * len(parts)
        else:
            self.freeze(*(value.axes[at] for at in middle))
            axes += [None] * len(sizes)
            zeros += [False] * len(sizes)
        end = len(old) - right
        return Value((*axes, *value.axes[end:]), (*zeros, *value.is_zero[end:]))

    def _root(self, label: int) -> int:
        while self._parent[label] != label:
            label = self._parent[label]
        return label

    def _merged(self, value: Value, at: Sequence[int], sizes: Sequence[int]) -> tuple[Axis, bool]:
        live = [axis for axis in at if sizes[axis] > 1 and self.is_live(value.axes[axis])]
        self.freeze(*(value.axes[axis] for axis in at if sizes[axis] == 1))
        if not live:
            return None, False
        *others, kept = live  # channels are the last axis by convention
        self.freeze(*(value.axes[axis] for axis in others))
        labels = value.axes[kept]
        assert labels is not None
        shape = [sizes[axis] if axis == kept else 1 for axis in at]
        full = np.broadcast_to(labels.reshape(shape), [sizes[axis] for axis in at])
        return full.reshape(-1), value.is_zero[kept]

    def _split(self, labels: Axis, sizes: Sequence[int]) -> list[Axis]:
        axes: list[Axis] = [None] * len(sizes)
        wide = [at for at, size in enumerate(sizes) if size > 1]
        if labels is None or not wide:
            self.freeze(labels)
            return axes
        grid = self.find(labels).reshape(sizes)
        # An axis along which the labels already are constant in all others needs no union.
        kept = next((at for at in wide if _is_constant(grid, at)), wide[0])
        rows = np.moveaxis(grid, kept, 0).reshape(sizes[kept], -1)
        for column in rows.T[1:]:
            self.unite(rows[:, 0], column)
        axes[kept] = rows[:, 0]
        return axes


def _is_constant(grid: np.ndarray, axis: int) -> bool:
    rows = np.moveaxis(grid, axis, 0).reshape(grid.shape[axis], -1)
    return bool((rows == rows[:, :1]).all())


def _same(one: Any, other: Any) -> bool:
    return bool(one == other)


def _factors(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Returns the smallest groups of old axes (their indices) and new axes (their sizes) of equal product."""
    groups: list[tuple[list[int], list[int]]] = []
    start, at = 0, 0
    while start < len(old) or at < len(new):
        group: list[int] = []
        parts: list[int] = []
        while (not group and not parts) or math.prod(old[i] for i in group) != math.prod(parts):
            take_old = math.prod(old[i] for i in group) <= math.prod(parts)
            if (take_old and start < len(old)) or at == len(new):
                group.append(start)
                start += 1
            else:
                parts.append(new[at])
                at += 1
        groups.append((group, parts))
    return groups
