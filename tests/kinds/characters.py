"""The next character of short sentences, from those before it."""

import jax
import numpy as np
from flax import linen as nn

from dl import Experiment, PositiveInt, Seed, main, optimizers, task
from dl.data import ArraySource, ArraySplits
from dl.evaluation.baselines import NGram

ALPHABET = "\0 abcdefghijklmnopqrstuvwxyz."
NOUNS, VERBS = ("cat", "dog", "old man", "child", "horse"), ("sees", "likes", "hears", "follows")
LENGTH = 32


class Sentences(ArraySplits):
    token_names = tuple(ALPHABET)

    @property
    def num_bytes(self) -> dict[str, int]:
        """Of the characters that are predicted, one byte each: all but the first of each row."""
        tokens = {name: source[np.arange(len(source))]["tokens"] for name, source in self.evaluations.items()}
        return {name: int((rows[:, 1:] > 0).sum()) for name, rows in tokens.items()}


class Causal(nn.Module):
    """Embeds each character and its two predecessors."""

    @nn.compact
    def __call__(self, tokens_BT: jax.Array) -> jax.Array:
        x_BTF = nn.Embed(len(ALPHABET), 16)(tokens_BT)
        x_BTF = nn.relu(nn.Conv(32, (3,), padding="CAUSAL")(x_BTF))
        return nn.Dense(len(ALPHABET))(x_BTF)


def sentences(size: int, seed: int) -> ArraySource:
    random = np.random.default_rng(seed)
    tokens = np.zeros((size, LENGTH), np.uint8)
    for row in tokens:
        words = (random.choice(NOUNS), random.choice(VERBS), random.choice(NOUNS))
        text = f"the {words[0]} {words[1]} the {words[2]}."[:LENGTH]
        row[: len(text)] = [ALPHABET.index(letter) for letter in text]
    return ArraySource({"tokens": tokens})


def experiment(num_steps: PositiveInt = 60, seed: Seed = 0) -> Experiment:
    """Trains a small convolution.

    Args:
      num_steps: updates.
      seed: of parameters and order.
    """
    splits = {"validation": sentences(60, 1), "test": sentences(80, 2)}
    model = Causal()
    return Experiment(
        data=Sentences("sentences", train=sentences(200, 0), evaluations=splits),
        task=task.language_model(model, padding_id=0),
        tx=optimizers.adam(1e-2),
        baseline=NGram(max_order=4, padding_id=0),
        num_steps=num_steps,
        batch_size=40,
        seed=seed,
    )


if __name__ == "__main__":
    main(experiment)
