"""A convolutional network that reads handwritten digits.

    python -m experiments.mnist_cnn                       # MNIST, or the embedded digits without a network
    python -m experiments.mnist_cnn --network classic     # one convolution, 2,770,634 parameters
    python -m experiments.mnist_cnn --dataset cifar10     # any prepared image-classification set

Measured on two cores of an Intel Xeon with jax 0.10.2:

    pyramid, MNIST            99.54 % test accuracy (mean of 99.52, 99.59, 99.52)    164 s
    classic, MNIST            98.44 % test accuracy (mean of 98.37, 98.62, 98.34)    155 s
    pyramid, embedded digits  99.7 % test accuracy                                    61 s

The means are over seeds 0, 1 and 2. The figure on the embedded digits was measured while other work ran.
"""

from typing import Literal

import flax.linen as nn

from dl import Experiment, Fraction, StopAt, main, optimizers, task
from dl.data import image_classification
from dl.data.images.augment import random_affine
from dl.models.cnn import CNN, ConvNet
from dl.option_types import BatchSize, DatasetName, ImageSize, LearningRate, NumEpochs, Seed, WeightDecay


def experiment(
    dataset: DatasetName = "auto",
    network: Literal["pyramid", "classic"] = "pyramid",
    batch_size: BatchSize = 128,
    num_epochs: NumEpochs | None = None,
    learning_rate: LearningRate | None = None,
    weight_decay: WeightDecay = 0.05,
    image_size: ImageSize = 28,
    target_accuracy: Fraction | None = None,
    seed: Seed = 0,
) -> Experiment:
    """Returns a convolutional network with its optimizer and, for pyramid, its augmentation.

    Args:
      network: Architecture: pyramid (five convolutions and a dense layer, 298,186 parameters) or classic (one
        convolution and two dense layers, 2,770,634 parameters).
      num_epochs: Number of passes over the training split. Default: 8 for pyramid, 10 for classic. On a small
        data set the default is larger, so that there are at least 1,000 steps.
      learning_rate: Peak learning rate of pyramid, or constant learning rate of classic. Default: 0.003 for
        pyramid, 0.001 for classic.
      weight_decay: Weight decay of pyramid, on kernels only. The option has no effect on classic.
      target_accuracy: Validation accuracy at which training stops. Default: no early stop.
    """
    data = image_classification(dataset, image_size=image_size)
    default_epochs = 8 if network == "pyramid" else 10
    num_steps = data.steps(num_epochs or default_epochs, batch_size, at_least=1 if num_epochs else 1000)
    if network == "pyramid":
        model: nn.Module = ConvNet(num_classes=data.num_classes)
        schedule = optimizers.cosine(learning_rate or 3e-3, num_steps, warmup_steps=num_steps // 10)
        tx = optimizers.adamw(schedule, weight_decay=weight_decay, clip_norm=1.0)
        augment = random_affine(rotate=0.2, zoom=0.1, shear=0.1, shift=image_size / 14)
    else:
        model = CNN(channels=(32,), hidden=(128,), num_classes=data.num_classes)
        tx = optimizers.adam(learning_rate or 1e-3)
        augment = None
    return Experiment(
        data=data,
        augment=augment,
        task=task.classification(model),
        tx=tx,
        num_steps=num_steps,
        batch_size=batch_size,
        stop_at=None if target_accuracy is None else StopAt(value=target_accuracy, metric="accuracy"),
        seed=seed,
    )


if __name__ == "__main__":
    main(experiment)
