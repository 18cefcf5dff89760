"""CIFAR-10 by ResNet-18: crops, flips, Nesterov's momentum, a rate that falls along a cosine.

    python -m experiments.cifar10_resnet18            # made for a GPU
    python -m experiments.cifar10_resnet18 --smoke    # an eighth of the width, one epoch: a minute on a CPU

The target on the real CIFAR-10 is 95 % test accuracy; the full recipe has not been measured yet. The smoke
run: training loss 2.4 to 1.5, 48.6 % test accuracy in 77 s, on CIFAR-10 encoded anew as JPEG, which is not
comparable with published figures; two cores of an Intel Xeon, jax 0.10.2.
"""

from dl import Experiment, NonNegativeFloat, PositiveFloat, PositiveInt, Seed, main, optimizers, task
from dl.data import image_classification, steps_per_epoch
from dl.data.images.augment import compose, random_crop, random_horizontal_flip
from dl.data.images.decoding import resized
from dl.models.resnet import resnet18
from dl.models.scaling import minus_one_to_one


def experiment(
    dataset: str = "auto",
    batch_size: PositiveInt = 128,
    num_epochs: PositiveInt = 200,
    learning_rate: PositiveFloat = 0.1,
    weight_decay: NonNegativeFloat = 5e-4,
    smoke: bool = False,
    seed: Seed = 0,
) -> Experiment:
    """Trains a classifier.

    Args:
      dataset: NAME of a prepared set or a folder of images; auto is CIFAR-10, else its JPEG copy.
      batch_size: examples of an update.
      num_epochs: passes over the training split.
      learning_rate: the first, of a cosine down to 0.
      weight_decay: L2 on kernels, added to the gradient.
      smoke: a narrow network and one epoch, to see that the loss falls.
      seed: of parameters, order and augmentation.
    """
    data = image_classification(dataset, auto=("cifar10", "cifar10_jpeg"), image_size=32)
    num_steps = (1 if smoke else num_epochs) * steps_per_epoch(len(data.train), batch_size)
    width = 8 if smoke else 64
    model = resnet18(data.num_classes, width=width, small_images=True, scaling=minus_one_to_one)
    return Experiment(
        data=data,
        preprocess=resized(32, 32),
        augment=compose(random_horizontal_flip(), random_crop(4)),
        task=task.classification(model),
        tx=optimizers.sgd(
            optimizers.cosine(learning_rate, num_steps), 0.9, nesterov=True, weight_decay=weight_decay
        ),
        num_steps=num_steps,
        batch_size=batch_size,
        seed=seed,
    )


if __name__ == "__main__":
    main(experiment)
