"""A convolutional network reads handwriting.

    python -m experiments.mnist_cnn                       # MNIST, or the embedded digits without a network
    python -m experiments.mnist_cnn --network classic     # one convolution, 2,770,634 parameters
    python -m experiments.mnist_cnn --dataset cifar10     # any prepared image-classification set

On MNIST: 99.54 % test accuracy (mean of seeds 0, 1, 2: 99.52, 99.59, 99.52) in 164 s; classic 98.44 %
(98.37, 98.62, 98.34) in 155 s. On the embedded digits: 99.7 % in 61 s while other work ran. Two cores of an
Intel Xeon, jax 0.10.2.
"""

from typing import Literal

import flax.linen as nn

from dl import (
    Experiment,
    Fraction,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Seed,
    StopAt,
    main,
    optimizers,
    task,
)
from dl.data import image_classification, steps_per_epoch
from dl.data.images.augment import random_affine
from dl.data.images.decoding import resized
from dl.models.cnn import CNN, ConvNet


def experiment(
    dataset: str = "auto",
    network: Literal["pyramid", "classic"] = "pyramid",
    batch_size: PositiveInt = 128,
    num_epochs: PositiveInt | None = None,
    learning_rate: PositiveFloat | None = None,
    weight_decay: NonNegativeFloat = 0.05,
    image_size: PositiveInt = 28,
    target_accuracy: Fraction | None = None,
    seed: Seed = 0,
) -> Experiment:
    """Trains a classifier.

    Args:
      dataset: NAME or NAME/CONFIG of a prepared image-classification set, or the path of a folder with
        images by class, such as ./photos; auto is MNIST, else digits.
      network: pyramid (298,186 parameters) or classic, one convolution and two dense layers (2,770,634).
      batch_size: examples of an update.
      num_epochs: passes over the training split. None: 8 (classic: 10), and 1,000 steps at least.
      learning_rate: the highest rate of AdamW. None: 0.003. Of classic's Adam, constant; None: 0.001.
      weight_decay: of AdamW, on kernels; pyramid only.
      image_size: side of the square that images are resized to.
      target_accuracy: stop after the epoch in which validation accuracy reaches this.
      seed: of parameters, order, dropout and augmentation.
    """
    data = image_classification(dataset, image_size=image_size)
    per_epoch = steps_per_epoch(len(data.train), batch_size)
    if network == "pyramid":
        num_steps = per_epoch * (num_epochs or max(8, -(-1000 // per_epoch)))
        model: nn.Module = ConvNet(num_classes=data.num_classes)
        schedule = optimizers.cosine(learning_rate or 3e-3, num_steps, warmup_steps=num_steps // 10)
        tx = optimizers.adamw(schedule, weight_decay=weight_decay, clip_norm=1.0)
        augment = random_affine(rotate=0.2, zoom=0.1, shear=0.1, shift=image_size / 14)
    else:
        num_steps = per_epoch * (num_epochs or max(10, -(-1000 // per_epoch)))
        model = CNN(channels=(32,), hidden=(128,), num_classes=data.num_classes)
        tx = optimizers.adam(learning_rate or 1e-3)
        augment = None
    return Experiment(
        data=data,
        preprocess=resized(image_size, image_size),
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
