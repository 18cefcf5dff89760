"""Splits of examples that are drawn one by one."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from dl.data.source import ArraySource
from dl.ranges import STEPS, Range, check_count

Draw = Callable[[np.random.Generator, str], Mapping[str, np.ndarray]]
"""A function from a random generator and the name of a split to the features of one example."""

SPLITS = ("train", "validation", "test")


def draw_splits(draw: Draw, sizes: Sequence[int], seed: int) -> tuple[ArraySource, dict[str, ArraySource]]:
    """Returns the training examples, and those of the evaluation splits.

    Example i of a split depends on the seed, the split and i alone.

    Args:
      draw: draws one example.
      sizes: number of examples of each of `SPLITS`.
      seed: seed of all draws.

    Raises:
      UserError: a size or the seed is out of range.
    """
    check_count("seed", seed, Range(0, 2**32 - 1))
    sources = {}
    for number, (split, size) in enumerate(zip(SPLITS, sizes, strict=True)):
        size = check_count(f"num_{split}", size, STEPS)
        generators = (np.random.default_rng((seed, number, index)) for index in range(size))
        examples = [draw(generator, split) for generator in generators]
        names = examples[0].keys()
        sources[split] = ArraySource({name: np.stack([one[name] for one in examples]) for name in names})
    return sources.pop("train"), sources
