"""Removal of duplicate examples."""

import hashlib

import numpy as np

from dl.data.source import ArraySource
from dl.types import Source

_CHUNK = 1024  # examples read at once


def deduplicate(source: Source, name: str = "image") -> tuple[ArraySource, int]:
    """Returns a source in memory without later copies of an example, and the number of removed copies.

    Two examples are copies if the feature `name` is equal in every byte, whatever their labels are. An image
    that occurs with two labels keeps the first one. The order of the examples is kept.

    Args:
      source: source whose examples all have the same shape. It is read in parts and compared by SHA-256.
      name: name of the feature that is compared.
    """
    seen: set[bytes] = set()
    kept: list[int] = []
    for start in range(0, len(source), _CHUNK):
        for row, value in enumerate(source[np.arange(start, min(start + _CHUNK, len(source)))][name], start):
            digest = hashlib.sha256(value.tobytes()).digest()
            if digest not in seen:
                seen.add(digest)
                kept.append(row)
    return ArraySource(source[np.array(kept, int)]), len(source) - len(kept)
