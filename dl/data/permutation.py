"""Random orders that are the same on every machine and in every version of NumPy."""

import numpy as np


def random_order(size: int, *key: int) -> np.ndarray:
    """Returns 0, …, size - 1 in an order that is a function of `key` (two integers below 2**64), int32.

    It is the order of the raw numbers of Philox. NumPy guarantees this stream for all versions, but not the
    result of `Generator.permutation`.
    """
    numbers = np.random.Philox(key=key).random_raw(size)
    return np.argsort(numbers, kind="stable").astype(np.int32)
