"""Whether each letter is a vowel, and whether it repeats the letter before it."""

import flax.linen as nn
import numpy as np

from dl import Experiment, PositiveInt, Seed, main, optimizers, task
from dl.data import ArraySource, ArraySplits
from dl.losses import NOT_COUNTED

LETTERS = ("[PAD]", *"abcde")
LENGTH = 8


class Letters(ArraySplits):
    token_names = LETTERS
    class_names = ("consonant", "vowel", "repeated")


class Tagger(nn.Module):
    @nn.compact
    def __call__(self, tokens_BT, segment_ids_BT=None):
        x_BTD = nn.relu(nn.Conv(16, (3,))(nn.Embed(len(LETTERS), 8)(tokens_BT)))
        return nn.Dense(3)(x_BTD)


def letters(size: int, seed: int) -> ArraySource:
    random = np.random.default_rng(seed)
    tokens, label = np.zeros((size, LENGTH), np.uint8), np.full((size, LENGTH), NOT_COUNTED, np.int32)
    for row, tags in zip(tokens, label, strict=True):
        drawn = random.integers(1, len(LETTERS), random.integers(2, LENGTH + 1))
        row[: len(drawn)] = drawn
        is_repeated = np.concatenate([[False], drawn[1:] == drawn[:-1]])
        tags[: len(drawn)] = np.where(is_repeated, 2, np.isin(drawn, [1, 5]))
    return ArraySource({"tokens": tokens, "segment_ids": np.int32(tokens > 0), "label": label})


def experiment(num_steps: PositiveInt = 60, seed: Seed = 0) -> Experiment:
    """Trains a small convolution.

    Args:
      num_steps: updates.
    """
    model = Tagger()
    return Experiment(
        data=Letters(
            "tagged letters",
            train=letters(200, 0),
            evaluations={"validation": letters(24, 1), "test": letters(60, 2)},
        ),
        task=task.tagging(model),
        tx=optimizers.adam(1e-2),
        num_steps=num_steps,
        batch_size=40,
        seed=seed,
    )


if __name__ == "__main__":
    main(experiment)
