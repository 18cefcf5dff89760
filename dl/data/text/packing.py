"""Packing: documents of unequal length in rows of equal length, with little padding.

Shapes: R rows, T tokens of a row, N tokens of all documents.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dl.data.source import ArraySource
from dl.errors import UserError
from dl.losses import NOT_COUNTED
from dl.ranges import STEPS, check_count


class Packed(NamedTuple):
    """Documents in rows.

    Attributes:
      source: the rows, with the features `tokens`, `targets`, `segment_ids` and `positions`, each int32 (T,).
        A target is the token that follows in the same document, or `losses.NOT_COUNTED`. Segments are
        numbered from 1 in each row, and padding is segment 0. Positions start at 0 in each segment.
      utilization: fraction of the places of all rows that hold a token.
    """

    source: ArraySource
    utilization: float


def pack(documents: Sequence[np.ndarray], length: int, padding_id: int | None = None) -> Packed:
    """Packs documents into rows of T tokens by best-fit decreasing.

    Documents are placed from the longest to the shortest, each into the row in which it leaves the least
    space, or into a new row. The result is a function of the documents. It has at most 11/9 of the smallest
    number of rows, plus 4 (Johnson 1974). A document of more than T tokens is cut into segments of T tokens
    and a rest. The last target of such a segment is the first token of the next one, so every token of a
    document but its first is a target once.

    Args:
      documents: tokens of each document. Empty documents are left out.
      length: T.
      padding_id: token of padding. `None` means 0; it is never read, because its segment is 0.

    Raises:
      UserError: `length` is out of range, or no document has 2 tokens.
    """
    length = check_count("sequence_length", length, STEPS)
    sizes = np.array([len(document) for document in documents], np.int64)
    if sizes.max(initial=0) < 2:
        raise UserError("no document has 2 tokens, so there is no token to predict; give longer texts")
    tokens_N = np.concatenate([np.asarray(document) for document in documents]).astype(np.int32)
    following_N = np.append(tokens_N[1:], np.int32(NOT_COUNTED))
    following_N[np.cumsum(sizes)[sizes > 0] - 1] = NOT_COUNTED

    starts, sizes = _pieces(sizes, length)
    row, offset = _places(sizes, length)
    order = np.lexsort((offset, row))
    starts, sizes, row, offset = starts[order], sizes[order], row[order], offset[order]
    is_first = np.diff(row, prepend=-1) > 0
    number = np.arange(len(row)) - np.maximum.accumulate(np.where(is_first, np.arange(len(row)), 0)) + 1

    within_N = _within(sizes)
    at_N = np.repeat(row * length + offset, sizes) + within_N
    from_N = np.repeat(starts, sizes) + within_N
    columns = {
        "tokens": (0 if padding_id is None else padding_id, tokens_N[from_N]),
        "targets": (NOT_COUNTED, following_N[from_N]),
        "segment_ids": (0, np.repeat(number, sizes)),
        "positions": (0, within_N),
    }
    arrays = {}
    for name, (padding, values_N) in columns.items():
        flat = np.full((row[-1] + 1) * length, padding, np.int32)
        flat[at_N] = values_N
        arrays[name] = flat.reshape(-1, length)
    return Packed(ArraySource(arrays), len(at_N) / arrays["tokens"].size)


def _pieces(sizes: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the start in all tokens and the size of each segment, in the order of the documents."""
    counts = -(-sizes // length)
    number = _within(counts)  # of a segment in its document
    first = np.repeat(np.cumsum(sizes) - sizes, counts)
    left = np.repeat(sizes, counts) - number * length
    return first + number * length, np.minimum(left, length)


def _places(sizes: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the row and the offset in it of each segment, by best-fit decreasing."""
    row, offset = np.empty_like(sizes), np.empty_like(sizes)
    rows_with: list[list[int]] = [[] for _ in range(length + 1)]  # rows by the space that is left in them
    spaces = 0  # bit s is set if a row has the space s, so that the best fit is the lowest bit from the size
    num_rows = 0
    for segment in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[segment])
        fitting = spaces >> size
        if fitting:
            space = size + (fitting & -fitting).bit_length() - 1
            at = rows_with[space].pop()
            if not rows_with[space]:
                spaces ^= 1 << space
        else:
            space, at = length, num_rows
            num_rows += 1
        row[segment], offset[segment] = at, length - space
        if left := space - size:
            rows_with[left].append(at)
            spaces |= 1 << left
    return row, offset


def _within(counts: np.ndarray) -> np.ndarray:
    """Returns 0, …, n - 1 for each count n, joined."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
