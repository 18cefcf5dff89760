"""The orders of epochs that are read at the moment, which all batches of a process share.

Shapes: N examples.
"""

import threading
from collections import OrderedDict

import numpy as np

from dl.data.buckets import Buckets
from dl.data.permutation import random_order

_Stream = tuple[int, int | None, Buckets | None]
"""What an order follows from beside the epoch: N, the seed, and the buckets."""


class EpochOrders:
    """Orders of examples by epoch: the last two epochs of each seed, within a limit of bytes.

    Two epochs, because batches that are read ahead belong to the next one. A step never changes with what is
    kept: an order that was dropped is computed again.
    """

    def __init__(self, max_bytes: int):
        """Starts without an order.

        Args:
          max_bytes: the largest size of all orders. The last two are kept even if they are larger.
        """
        self._max_bytes = max_bytes
        self._orders: OrderedDict[tuple[_Stream, int], np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """The size of the orders that are kept."""
        return sum(order.nbytes for order in self._orders.values())

    def order(self, size: int, seed: int | None, epoch: int, buckets: Buckets | None = None) -> np.ndarray:
        """Returns the order of an epoch, int32, shape N; it cannot be written.

        Args:
          size: the number of examples, N.
          seed: random seed of the order. `None` means the order of the source, in every epoch.
          epoch: the number of the epoch.
          buckets: which examples are in one batch.
        """
        stream, epoch = (size, seed, buckets), 0 if seed is None else epoch
        with self._lock:
            if (order_N := self._orders.get((stream, epoch))) is not None:
                self._orders.move_to_end((stream, epoch))
                return order_N
            self._orders[stream, epoch] = order_N = _order(size, seed, epoch, buckets)
            for key in [key for key in self._orders if key[0] == stream and abs(key[1] - epoch) > 1]:
                del self._orders[key]
            while len(self._orders) > 2 and self.nbytes > self._max_bytes:
                self._orders.popitem(last=False)
            return order_N


def _order(size: int, seed: int | None, epoch: int, buckets: Buckets | None) -> np.ndarray:
    if seed is None:
        order_N = np.arange(size, dtype=np.int32)
    else:
        order_N = random_order(size, seed, epoch)
    if buckets is not None:
        order_N = buckets.sort(order_N)
    order_N.flags.writeable = False  # All callers share this array.
    return order_N
