"""The airbench recipe on Fashion-MNIST: whitened patches, batch norm, Muon and mirrored images.

    python -m experiments.fashion_mnist

Measured on two cores of an Intel Xeon with jax 0.10.2: 94.44 % test accuracy, the mean of seeds 0, 1 and 2
(94.31, 94.25, 94.75) in 24, 28 and 20 min, while other work ran on the same cores.

The prediction for an image is the mean of the outputs for the image and for its mirror image.
"""

from dl import Experiment, main
from dl.data import image_classification
from dl.option_types import BatchSize, DatasetName, LabelSmoothing, LearningRate, NumEpochs, Seed, WeightDecay
from experiments.cifar10_airbench import recipe


def experiment(
    dataset: DatasetName = "fashion_mnist",
    batch_size: BatchSize = 250,
    num_epochs: NumEpochs = 12,
    learning_rate: LearningRate = 1e-2,
    weight_decay: WeightDecay = 0.05,
    label_smoothing: LabelSmoothing = 0.1,
    seed: Seed = 0,
) -> Experiment:
    """Returns the airbench recipe with three stages of 32, 96 and 192 channels."""
    data = image_classification(dataset, image_size=28)
    rates = {"learning_rate": learning_rate, "weight_decay": weight_decay, "label_smoothing": label_smoothing}
    return recipe(data, (32, 96, 192), batch_size, num_epochs, seed=seed, **rates)


if __name__ == "__main__":
    main(experiment)
