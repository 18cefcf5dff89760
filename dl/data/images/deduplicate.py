"""Less data by leaving out what is there twice."""

import hashlib

import numpy as np

from dl.data.source import ArraySource
from dl.types import Source

_CHUNK = 1024  # examples read at once


def deduplicate(source: Source, name: str = "image") -> tuple[ArraySource, int]:
    """Returns a source in memory without later copies of an example, and how many were left out.

    Two examples are copies where the feature `name` agrees in every byte, whatever their labels: an image
    that stands in a set under two labels keeps its first one. The others keep their order.

    Args:
      source: examples of one shape; compared by SHA-256, read in parts.
      name: the feature that is compared.
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
