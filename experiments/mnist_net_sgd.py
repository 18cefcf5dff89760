"""Two convolutions and plain SGD on MNIST: the classic first network, 843,658 parameters.

Convolution 32, pool, convolution 64, pool, dense 512, dense 10; SGD at 0.01 without momentum, batch 64,
ten epochs, no augmentation. After two 3×3 convolutions and pools a 28×28 image is 5×5, so the flattened
vector has 64·5·5 = 1,600 entries.

    python -m experiments.mnist_net_sgd

98.65 % test accuracy on MNIST (seed 0) at the epoch that validation chose (9 of 10), in 155 s; two
cores of an Intel Xeon, jax 0.10.2.
"""

from dl import Experiment, KeepBest, PositiveFloat, PositiveInt, Seed, main, optimizers, task
from dl.data import image_classification, steps_per_epoch
from dl.data.images.decoding import resized
from dl.models.cnn import CNN


def experiment(
    dataset: str = "auto",
    batch_size: PositiveInt = 64,
    num_epochs: PositiveInt = 10,
    learning_rate: PositiveFloat = 0.01,
    image_size: PositiveInt = 28,
    seed: Seed = 0,
) -> Experiment:
    """Plain SGD.

    Args:
      dataset: NAME or NAME/CONFIG of a prepared image-classification set, or the path of a folder with
        images by class, such as ./photos; auto is MNIST, else digits.
      batch_size: examples of an update.
      num_epochs: passes over the training split.
      learning_rate: of SGD, constant.
      image_size: side that images are resized to.
      seed: of parameters and order.
    """
    data = image_classification(dataset, image_size=image_size)
    model = CNN(channels=(32, 64), hidden=(512,), num_classes=data.num_classes, pool=True)
    return Experiment(
        data=data,
        preprocess=resized(image_size, image_size),
        task=task.classification(model),
        tx=optimizers.sgd(learning_rate),
        num_steps=num_epochs * steps_per_epoch(len(data.train), batch_size),
        batch_size=batch_size,
        keep_best=KeepBest(metric="accuracy"),
        seed=seed,
    )


if __name__ == "__main__":
    main(experiment)
