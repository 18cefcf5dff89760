"""Images of four handwritten digits in some order: the class is the order.

The digits 0, 1, 2 and 3 occur once in every image, so that only their places tell the class. Networks that
pool over the whole image without having looked at two digits at once cannot know it.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np

from dl.data.splits import ArraySplits
from dl.data.synthetic.draw import draw_splits
from dl.ranges import Range, check_count

SIDE = 2  # patches in a row and in a column
NUM_PATCHES = SIDE * SIDE
PATCH = 24  # pixels; a digit has 8, so it is 16 pixels from the next one and 8 from the border
_TENTHS = {"train": range(7), "validation": range(7, 8), "test": range(8, 10)}  # of the images of a digit


@dataclass(frozen=True, kw_only=True)
class PatchOrder(ArraySplits):
    """Images of digits in some order, made by `patch_order`.

    Attributes:
      class_names: the digits of each class, row by row.
    """

    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


def patch_order(
    num_classes: int = 24,
    *,
    num_train: int = 8000,
    num_validation: int = 1000,
    num_test: int = 2000,
    seed: int = 0,
) -> PatchOrder:
    """Returns images of the digits 0 to 3 in the four quarters, and the order of the digits as the class.

    Examples are {"image": uint8 (48, 48, 1), "label": int32 ()}. The digits are those of scikit-learn, 8×8
    pixels, each in the middle of its quarter on a black ground. No two splits share the image of a digit.

    Args:
      num_classes: number of different orders, 2 to 24.
      num_train: number of training examples.
      num_validation: number of validation examples.
      num_test: number of test examples.
      seed: seed of the examples. It is not that of a run, so that all runs have the same data.

    Raises:
      UserError: a number is out of range.
    """
    from sklearn.datasets import load_digits

    num_orders = math.factorial(NUM_PATCHES)
    num_classes = check_count("num_classes", num_classes, Range(2, num_orders))
    orders = list(itertools.permutations(range(NUM_PATCHES)))
    orders = [orders[k * num_orders // num_classes] for k in range(num_classes)]
    stored = load_digits()
    images = np.rint(stored.images * (255 / 16)).astype(np.uint8)  # stored as 0, …, 16
    of_digit = [images[stored.target == digit] for digit in range(NUM_PATCHES)]
    pools = {
        split: [rows[np.isin(np.arange(len(rows)) % 10, tenths)] for rows in of_digit]
        for split, tenths in _TENTHS.items()
    }
    margin = (PATCH - images.shape[1]) // 2

    def draw(generator: np.random.Generator, split: str) -> dict[str, np.ndarray]:
        label = generator.integers(num_classes)
        image = np.zeros((SIDE * PATCH, SIDE * PATCH, 1), np.uint8)
        for place, digit in enumerate(orders[label]):
            pool = pools[split][digit]
            row, column = (PATCH * k + margin for k in divmod(place, SIDE))
            height, width = pool.shape[1:]
            image[row : row + height, column : column + width, 0] = pool[generator.integers(len(pool))]
        return {"image": image, "label": np.array(label, np.int32)}

    train, evaluations = draw_splits(draw, (num_train, num_validation, num_test), seed)
    names = tuple("".join(map(str, order)) for order in orders)
    provenance = f"digits of scikit-learn, placed from the seed {seed}"
    return PatchOrder(f"patch_order_{num_classes}", train, evaluations, provenance, class_names=names)
