"""Whether a short opinion about a film is good: a mean of the words that ignores padding."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from dl import Experiment, PositiveInt, Seed, main, optimizers, task
from dl.data import ArraySource, ArraySplits

WORDS = ("[PAD]", "[UNK]", "a", "film", "fine", "great", "dull", "bad", "so", "very")
LENGTH = 6


class Tokenizer:
    """Words of a fixed vocabulary."""

    vocab_size = len(WORDS)
    token_names = WORDS
    padding_id, unknown_id = 0, 1

    def encode(self, text):
        return [WORDS.index(word) if word in WORDS else 1 for word in text.split()]

    def decode(self, tokens):
        return " ".join(WORDS[token] for token in tokens)


class Opinions(ArraySplits):
    tokenizer = Tokenizer()
    token_names = tuple(f" {word}" for word in WORDS)
    class_names = ("negative", "positive")


class MeanOfWords(nn.Module):
    @nn.compact
    def __call__(self, tokens_BT, segment_ids_BT=None, train=False):
        is_token_BT1 = (segment_ids_BT > 0)[..., None]
        x_BTD = nn.Embed(len(WORDS), 8)(tokens_BT)
        mean_BD = jnp.where(is_token_BT1, x_BTD, 0).sum(1) / jnp.maximum(is_token_BT1.sum(1), 1)
        return nn.Dense(2)(mean_BD)


def opinions(size: int, seed: int) -> ArraySource:
    random = np.random.default_rng(seed)
    tokens, label = np.zeros((size, LENGTH), np.uint8), np.zeros(size, np.int32)
    for i in range(size):
        label[i] = random.integers(0, 2)
        word = random.choice(["fine", "great"] if label[i] else ["dull", "bad"])
        words = ["a", *["so", "very"][: random.integers(0, 3)], word, "film"]
        label[i] ^= random.random() < 0.1  # some opinions contradict themselves
        tokens[i, : len(words)] = [WORDS.index(word) for word in words]
    return ArraySource({"tokens": tokens, "segment_ids": np.int32(tokens > 0), "label": label})


def experiment(num_steps: PositiveInt = 40, seed: Seed = 0) -> Experiment:
    """Trains a linear model.

    Args:
      num_steps: updates.
    """
    model = MeanOfWords()
    return Experiment(
        data=Opinions(
            "opinions",
            train=opinions(200, 0),
            evaluations={"validation": opinions(24, 1), "test": opinions(60, 2)},
        ),
        task=task.classification(model, input_name="tokens"),
        tx=optimizers.adam(3e-2),
        num_steps=num_steps,
        batch_size=40,
        seed=seed,
    )


if __name__ == "__main__":
    main(experiment)
