"""An autoencoder that squeezes 8 × 8 digits through a few numbers."""

import jax
import numpy as np
from flax import linen as nn
from sklearn.datasets import load_digits

from dl import Experiment, PositiveInt, Seed, main, optimizers, task
from dl.data import ArraySource, ArraySplits


class Autoencoder(nn.Module):
    num_codes: int

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        code_BK = nn.Dense(self.num_codes)(nn.relu(nn.Dense(32)(x_BHWC.reshape(len(x_BHWC), -1))))
        return nn.Dense(x_BHWC[0].size)(nn.relu(nn.Dense(32)(code_BK))).reshape(x_BHWC.shape)


def experiment(
    num_steps: PositiveInt = 45, num_codes: PositiveInt = 8, is_binary: bool = False, seed: Seed = 0
) -> Experiment:
    """Trains the autoencoder.

    Args:
      num_steps: updates.
      num_codes: numbers in the middle.
      is_binary: whether the loss is the cross-entropy of the pixels.
      seed: of parameters and order.
    """
    images = (load_digits().images * 15).astype(np.uint8)[..., None]
    data = ArraySplits(
        "digits",
        train=ArraySource({"image": images[:1200]}),
        evaluations={
            "validation": ArraySource({"image": images[1200:1400]}),
            "test": ArraySource({"image": images[1400:]}),
        },
    )
    model = Autoencoder(num_codes)
    return Experiment(
        data=data,
        task=task.autoencoder(model, is_binary=is_binary),
        tx=optimizers.adam(3e-3),
        num_steps=num_steps,
        batch_size=80,
        seed=seed,
    )


if __name__ == "__main__":
    main(experiment)
