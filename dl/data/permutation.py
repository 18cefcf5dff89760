"""Random orders that are the same on every machine and in every version of NumPy."""

import numpy as np


def random_order(size: int, *key: int) -> np.ndarray:
    """Returns 0, …, size - 1 in an order that is a function of `key` (two integers below 2**64), int32.

    It is the ranks of the raw words of Philox, a stream that NumPy promises to keep;
    `Generator.permutation` it may change.
    """
    words = np.random.Philox(key=key).random_raw(size)
    return np.argsort(words, kind="stable").astype(np.int32)
