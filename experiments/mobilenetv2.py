"""MobileNetV2 on small images, from scratch: a backbone for other experiments to start from.

    python -m experiments.mobilenetv2

It says how far a few epochs go; the published accuracy takes hundreds. 61.3 % test accuracy (seed 0) on
CIFAR-10 encoded anew as JPEG, which is not comparable with published figures; 20 min while other work ran on
the same two cores of an Intel Xeon, jax 0.10.2.
"""

from dl import Experiment, NonNegativeFloat, PositiveFloat, PositiveInt, Seed, main, optimizers, task
from dl.data import image_classification, steps_per_epoch
from dl.data.images.augment import compose, random_crop, random_horizontal_flip
from dl.data.images.decoding import resized
from dl.models.mobilenet import mobilenet_v2


def experiment(
    dataset: str = "cifar10_jpeg",
    width: PositiveFloat = 1.0,
    image_size: PositiveInt = 32,
    batch_size: PositiveInt = 128,
    num_epochs: PositiveInt = 8,
    learning_rate: PositiveFloat = 4e-3,
    weight_decay: NonNegativeFloat = 0.05,
    seed: Seed = 0,
) -> Experiment:
    """Trains a classifier.

    Args:
      dataset: NAME or NAME/CONFIG of a prepared image-classification set.
      width: the factor on all channels.
      image_size: side of the square that images are resized to.
      batch_size: examples of an update.
      num_epochs: passes over the training split.
      learning_rate: the highest rate of AdamW.
      weight_decay: of AdamW, on kernels.
      seed: of parameters, order and augmentation.
    """
    data = image_classification(dataset, image_size=image_size)
    num_steps = num_epochs * steps_per_epoch(len(data.train), batch_size)
    model = mobilenet_v2(data.num_classes, width, momentum=0.9, dropout=0.0)
    schedule = optimizers.cosine(learning_rate, num_steps, warmup_steps=num_steps // 8)
    return Experiment(
        data=data,
        preprocess=resized(image_size, image_size),
        augment=compose(random_horizontal_flip(), random_crop(image_size // 8)),
        task=task.classification(model),
        tx=optimizers.adamw(schedule, weight_decay=weight_decay, clip_norm=1.0),
        num_steps=num_steps,
        batch_size=batch_size,
        seed=seed,
    )


if __name__ == "__main__":
    main(experiment)
