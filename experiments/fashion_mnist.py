"""Fashion-MNIST to 94 %: whitened patches, batch norm, Muon; an image and its mirror image count alike.

    python -m experiments.fashion_mnist

94.48 % test accuracy (95 % interval 94.02 to 94.91; seed 0) in 24 min while other work ran on the same two
cores of an Intel Xeon, jax 0.10.2.
"""

from dl import Experiment, Fraction, PositiveFloat, PositiveInt, Seed, losses, main, optimizers
from dl.data import image_classification, steps_per_epoch
from dl.data.augment import compose, random_crop, random_horizontal_flip
from dl.data.images import resized
from dl.initial import whitened
from dl.models.airbench import Airbench


def experiment(
    dataset: str = "fashion_mnist",
    batch_size: PositiveInt = 250,
    num_epochs: PositiveInt = 12,
    learning_rate: PositiveFloat = 1e-2,
    weight_decay: PositiveFloat = 0.05,
    label_smoothing: Fraction = 0.1,
    seed: Seed = 0,
) -> Experiment:
    """Muon for kernels, Adam for the rest; the rate rises for a fifth of the steps, then falls to 0.

    Args:
      dataset: NAME of a prepared image-classification set, or a folder of images.
      batch_size: examples of an update.
      num_epochs: passes over the training split.
      learning_rate: the highest.
      weight_decay: of kernels.
      label_smoothing: how much of the target is spread over all classes.
      seed: of parameters, order and augmentation.
    """
    data = image_classification(dataset, image_size=28)
    num_steps = num_epochs * steps_per_epoch(len(data.train), batch_size)
    model = Airbench(data.num_classes, widths=(32, 96, 192))

    schedule = optimizers.linear(learning_rate, num_steps, warmup_steps=num_steps // 5)
    return Experiment(
        data=data,
        model=model,
        initial=whitened(data.train),
        frozen=("^whiten/kernel",),
        preprocess=resized(28, 28),
        augment=compose(random_horizontal_flip(), random_crop(2)),
        loss_fn=losses.classification(model, label_smoothing=label_smoothing),
        tx=optimizers.muon(schedule, weight_decay=weight_decay),
        num_steps=num_steps,
        batch_size=batch_size,
        seed=seed,
    )


if __name__ == "__main__":
    main(experiment)
