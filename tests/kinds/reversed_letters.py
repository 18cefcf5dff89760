"""Letters in the opposite order: a recurrent encoder and a causal decoder, taught by the true letters."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from dl import Experiment, PositiveInt, Seed, main, optimizers, task
from dl.data import ArraySource, ArraySplits

LETTERS = ("[PAD]", "[BOS]", "[EOS]", *"abcde")
LENGTH = 6


class Letters(ArraySplits):
    token_names = LETTERS


class EncoderDecoder(nn.Module):
    @nn.compact
    def __call__(self, source_BS, source_mask_BS, target_BT, target_mask_BT, train=False):
        embed = nn.Embed(len(LETTERS), 16)
        source_BSD = embed(source_BS) * source_mask_BS[..., None]
        memory_BD = nn.relu(nn.Dense(64)(source_BSD.reshape(len(source_BS), -1)))
        x_BTD = nn.Conv(32, (2,), padding="CAUSAL")(embed(target_BT) * target_mask_BT[..., None])
        place_TD = nn.Embed(LENGTH, 64)(jnp.arange(target_BT.shape[1]))
        h_BTD = nn.relu(nn.Dense(64)(x_BTD) + memory_BD[:, None] * place_TD[None])
        return nn.Dense(len(LETTERS))(h_BTD)


def letters(size: int, seed: int) -> ArraySource:
    random = np.random.default_rng(seed)
    source, target = (np.zeros((size, LENGTH), np.int32) for _ in range(2))
    for row, written in zip(source, target, strict=True):
        drawn = random.integers(3, len(LETTERS), random.integers(1, LENGTH))
        row[: len(drawn) + 1] = [*drawn, 2]
        written[: len(drawn) + 1] = [*drawn[::-1], 2]
    return ArraySource({"source": source, "target": target})


def experiment(num_steps: PositiveInt = 60, seed: Seed = 0) -> Experiment:
    """Trains a small encoder-decoder.

    Args:
      num_steps: updates.
    """
    model = EncoderDecoder()
    return Experiment(
        data=Letters(
            "reversed letters",
            train=letters(300, 0),
            evaluations={"validation": letters(24, 1), "test": letters(60, 2)},
        ),
        task=task.sequence_to_sequence(model, start_id=1, end_id=2, padding_id=0, label_smoothing=0.1),
        tx=optimizers.adam(1e-2),
        num_steps=num_steps,
        batch_size=40,
        seed=seed,
    )


if __name__ == "__main__":
    main(experiment)
