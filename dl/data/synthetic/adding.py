"""The adding problem: the sum of two marked numbers of a long sequence, a test of long memory.

Source: Hochreiter & Schmidhuber 1997, section 5.4, in the form of Arjovsky et al. 2016, section 5.2.
"""

import numpy as np

from dl.data.splits import ArraySplits
from dl.data.synthetic.draw import draw_splits
from dl.ranges import Range, check_count


def adding_problem(
    length: int = 50,
    *,
    num_train: int = 20_000,
    num_validation: int = 1000,
    num_test: int = 2000,
    seed: int = 0,
) -> ArraySplits:
    """Returns the adding problem. The mean squared error of the constant prediction 1 is 1/6 (0.167).

    Examples are {"features": float32 (length, 2), "target": float32 (1,)}. The first feature of each step is
    uniform in [0, 1). The second one marks one step of the first half and one of the second half by 1, and
    the others by 0. The target is the sum of the two marked numbers. Its variance is 2/12.

    Args:
      length: number of steps of a sequence.
      num_train: number of training examples.
      num_validation: number of validation examples.
      num_test: number of test examples.
      seed: seed of the examples. It is not that of a run, so that all runs have the same data.

    Raises:
      UserError: a number is out of range.
    """
    length = check_count("length", length, Range(2, 2**20))

    def draw(generator: np.random.Generator, split: str) -> dict[str, np.ndarray]:
        features = np.zeros((length, 2), np.float32)
        features[:, 0] = generator.random(length, np.float32)
        half = length // 2
        marked = [generator.integers(half), half + generator.integers(length - half)]
        features[marked, 1] = 1
        return {"features": features, "target": features[marked, 0].sum(keepdims=True)}

    train, evaluations = draw_splits(draw, (num_train, num_validation, num_test), seed)
    return ArraySplits(f"adding_{length}", train, evaluations, f"drawn from the seed {seed}")
