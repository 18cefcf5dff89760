"""Batches of examples of similar length, which are padded only to one of a few lengths.

Each length is compiled once. The batches of an epoch contain every example exactly once, in an order that is
a function of the seed and the epoch.

Shapes: N examples, B examples of a batch.
"""

from typing import Protocol

import numpy as np

from dl.data.permutation import random_order
from dl.types import Batch, Source

_KEY = 3 * 2**62  # different from the keys of orders of examples, (seed, epoch)


class OfLengths(Source, Protocol):
    """A source whose examples are padded at the end, and may be cut where only padding is left.

    Each feature of an example is a number, or a row of tokens or of values of tokens.

    Attributes:
      lengths: number of tokens of each example, int array of shape N.
      buckets: the lengths of batches in increasing order; the last is the length of the stored examples. At
        most one of them means that all batches have the full length.
    """

    @property
    def lengths(self) -> np.ndarray: ...

    @property
    def buckets(self) -> tuple[int, ...]: ...


class Buckets:
    """Which examples of a source are in one batch, and how long each batch is.

    An epoch sorts its random order by bucket, divides it into batches, and then draws the order of the
    batches. A batch between two buckets has the larger length. The lengths of the batches do not depend on
    the seed, so several seeds can be trained by one program.

    Attributes:
      lengths: the length of each batch before the order of the batches is drawn.
    """

    def __init__(self, source: OfLengths, batch_size: int):
        self._features = {name for name, leaf in source.spec.items() if len(leaf.shape)}
        bounds = np.array(source.buckets)
        self._bucket_N = np.searchsorted(bounds, np.minimum(source.lengths, bounds[-1]))
        sorted_N = np.sort(self._bucket_N)
        last = np.minimum(np.arange(batch_size, len(sorted_N) + batch_size, batch_size), len(sorted_N)) - 1
        self.lengths: list[int] = bounds[sorted_N[last]].tolist()

    def sort(self, order_N: np.ndarray) -> np.ndarray:
        """Returns an order of the examples, sorted by bucket."""
        return order_N[np.argsort(self._bucket_N[order_N], kind="stable")]

    def cut(self, batch: Batch, length: int) -> Batch:
        """Returns a batch with the first `length` tokens of each example."""
        return {
            name: values[..., :length] if name in self._features else values for name, values in batch.items()
        }

    def batch_of(self, epoch: int, step: int) -> int:
        """Returns which batch is the one of a step of an epoch."""
        return int(random_order(len(self.lengths), _KEY, epoch)[step])


def buckets_of(source: Source, batch_size: int) -> Buckets | None:
    """Returns the buckets of a source; `None` if all its batches have one length."""
    if len(getattr(source, "buckets", ())) < 2:
        return None
    return Buckets(source, batch_size)  # type: ignore[arg-type]
