"""How diabetes went on after a year, from ten measurements (Efron et al. 2004): a regression of a table."""

import jax
import numpy as np
from flax import linen as nn
from sklearn.datasets import load_diabetes

from dl import Experiment, PositiveFloat, PositiveInt, Seed, main, optimizers, task
from dl.data import ArraySource, ArraySplits


class Net(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x_BF: jax.Array) -> jax.Array:
        return nn.Dense(1)(nn.relu(nn.Dense(self.width)(x_BF)))


def experiment(
    num_steps: PositiveInt = 60, width: PositiveInt = 8, learning_rate: PositiveFloat = 0.03, seed: Seed = 0
) -> Experiment:
    """Trains a small network.

    Args:
      num_steps: updates.
      width: of the hidden layer.
      learning_rate: of Adam.
      seed: of parameters and order.
    """
    table = load_diabetes()
    features = (table.data * 20).astype(np.float32)
    target = ((table.target - 152) / 77).astype(np.float32)

    def part(start: int, stop: int) -> ArraySource:
        return ArraySource({"features": features[start:stop], "target": target[start:stop]})

    data = ArraySplits(
        "diabetes", train=part(0, 300), evaluations={"validation": part(300, 360), "test": part(360, 442)}
    )
    model = Net(width)
    return Experiment(
        data=data,
        task=task.regression(model, input_name="features"),
        tx=optimizers.adam(learning_rate),
        num_steps=num_steps,
        batch_size=48,
        seed=seed,
    )


if __name__ == "__main__":
    main(experiment)
