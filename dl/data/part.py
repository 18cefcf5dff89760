"""A part of a training split, such as a tenth of it."""

import numpy as np

from dl.data.folds import take
from dl.data.permutation import random_order
from dl.data.splits import ChangedSplits
from dl.types import Splits

_PART_KEY = (2, 2**63)  # differs from the keys of epochs, (seed, epoch), of splits and of folds


def part_of(data: Splits, fraction: float, batch_size: int = 1) -> ChangedSplits:
    """Returns splits whose training split is the first `part_size` rows of one fixed random order."""
    size = len(data.train)
    order = random_order(size, *_PART_KEY)
    rows = np.sort(order[: max(part_size(size, fraction, batch_size), 1)])
    return ChangedSplits(data, {"train": take(data.train, rows)})


def part_size(num_examples: int, fraction: float, batch_size: int = 1) -> int:
    """Returns the number of examples of a part: whole batches if it is larger than one batch.

    Otherwise the last batch of each epoch would be incomplete, sometimes with a single example. Because all
    sizes train for the same number of steps, a small part would have such a batch in every other step. A part
    that is smaller than a batch is one batch. The fraction 1 is always the whole split.
    """
    size = round(fraction * num_examples)
    if fraction == 1 or size <= batch_size:
        return size
    return min(round(size / batch_size), num_examples // batch_size) * batch_size
