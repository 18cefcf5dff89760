"""Which properties a digit has: even, prime, above four. Any number of them may hold."""

import jax
import numpy as np
from flax import linen as nn
from sklearn.datasets import load_digits

from dl import Experiment, PositiveInt, Seed, main, optimizers, task
from dl.data import ArraySource, ArraySplits


class Properties(ArraySplits):
    class_names = ("even", "prime", "above four")


class Net(nn.Module):
    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        return nn.Dense(3)(nn.relu(nn.Dense(32)(x_BHWC.reshape(len(x_BHWC), -1))))


def experiment(num_steps: PositiveInt = 60, seed: Seed = 0) -> Experiment:
    """Trains a small network.

    Args:
      num_steps: updates.
      seed: of parameters and order.
    """
    digits = load_digits()
    images = (digits.images * 15).astype(np.uint8)[..., None]
    digit = digits.target
    labels = np.stack([digit % 2 == 0, np.isin(digit, (2, 3, 5, 7)), digit > 4], 1).astype(np.uint8)

    def part(start: int, stop: int) -> ArraySource:
        return ArraySource({"image": images[start:stop], "label": labels[start:stop]})

    data = Properties(
        "properties of digits",
        train=part(0, 1200),
        evaluations={"validation": part(1200, 1400), "test": part(1400, 1797)},
    )
    model = Net()
    return Experiment(
        data=data,
        task=task.multi_label(model),
        tx=optimizers.adam(1e-2),
        num_steps=num_steps,
        batch_size=80,
        seed=seed,
    )


if __name__ == "__main__":
    main(experiment)
