"""The order of four digits in an image: a CNN with attention between positions, and the same CNN without.

    python -m experiments.cnn_attention_hybrid
    python -m experiments.cnn_attention_hybrid --network cnn

Measured on two cores of an Intel Xeon with jax 0.10.2, while much other work ran on the same cores:

    hybrid    96.8 % test accuracy (95.9 to 97.5)    480 s    31,704 parameters
    cnn        3.6 % test accuracy (2.9 to 4.5)      517 s     8,472 parameters

Each image shows the digits 0, 1, 2 and 3 once, and the class is their order, one of 24, so chance is 4.2 %.
The plain CNN takes the mean over all positions. It never sees two digits at once, so all orders of the same
four digits look alike to it. Neither network is the best one for these images: logistic regression on their
pixels has a test accuracy of 99.8 %, because the digits always lie at the same four places.
"""

from typing import Literal

from dl import Experiment, PositiveInt, main, optimizers, task
from dl.data.synthetic.patch_order import patch_order
from dl.models.cnn_attention import CNNAttention, PooledCNN
from dl.option_types import BatchSize, LearningRate, NumEpochs, Seed

NETWORKS = {"hybrid": CNNAttention, "cnn": PooledCNN}


def experiment(
    network: Literal["hybrid", "cnn"] = "hybrid",
    num_classes: PositiveInt = 24,
    batch_size: BatchSize = 100,
    num_epochs: NumEpochs = 10,
    learning_rate: LearningRate = 3e-3,
    seed: Seed = 0,
) -> Experiment:
    """Returns a small convolutional network, with attention before the pooling or without.

    Args:
      network: Architecture: hybrid (with attention) or cnn (without).
      num_classes: Number of different orders of the digits, 2 to 24.
    """
    data = patch_order(num_classes)
    num_steps = data.steps(num_epochs, batch_size)
    schedule = optimizers.cosine(learning_rate, num_steps, warmup_steps=num_steps // 10)
    return Experiment(
        data=data,
        task=task.classification(NETWORKS[network](data.num_classes, dropout=0.1)),
        tx=optimizers.adamw(schedule, weight_decay=0.05, clip_norm=1.0),
        num_steps=num_steps,
        batch_size=batch_size,
        seed=seed,
    )


if __name__ == "__main__":
    main(experiment)
