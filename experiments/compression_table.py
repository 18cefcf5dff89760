"""One network, compressed in eight ways: accuracy, size, FLOPs and measured time of each model.

    python -m experiments.compression_table                            # a CNN with 2.8 M weights on MNIST
    python -m experiments.compression_table --network fashion_mnist    # the airbench network
    python -m experiments.compression_table --network transformer      # writes Shakespeare by characters

The rows are: 80 % of the weights are 0; 40 % of the FLOPs, by whole channels; integers of 8 and of 4 bits;
half of the weights, by kernels of low rank; a small student that is distilled; and integers of 8 bits of the
pruned model and of the student. The model with 40 % of the FLOPs is trained as long as the network was. Other
trainings after a compression take a third of the epochs at a third of the learning rate.
"""

from collections.abc import Mapping
from typing import Any, Literal

from dl import Experiment, compression_main, optimizers, task
from dl.data import image_classification, language_modeling
from dl.models.cnn import CNN
from dl.models.llama import Llama
from dl.option_types import DatasetName, LearningRate, NumEpochs, Seed
from experiments.cifar10_airbench import recipe

EPOCHS = {"mnist_cnn": 6, "fashion_mnist": 6, "transformer": 3}
RATES = {"mnist_cnn": 1e-3, "fashion_mnist": 1e-2, "transformer": 3e-3}


def experiment(
    network: Literal["mnist_cnn", "fashion_mnist", "transformer"] = "mnist_cnn",
    size: Literal["full", "small"] = "full",
    dataset: DatasetName | None = None,
    num_epochs: NumEpochs | None = None,
    learning_rate: LearningRate | None = None,
    seed: Seed = 0,
) -> Experiment:
    """Returns a network with its optimizer, in the size that is compressed or in that of the student.

    Args:
      network: Network and its data: mnist_cnn (one convolution, two dense layers), fashion_mnist (airbench),
        or transformer (a decoder of characters).
      size: Width of the network: full, or small for a student.
      dataset: Name of the data. Default: auto for mnist_cnn, fashion_mnist, and auto for transformer.
      num_epochs: Number of passes over the training split. Default: 6, for transformer 3.
      learning_rate: Peak learning rate. Default: 0.001, 0.01 and 0.003, in the order of the networks.
    """
    epochs, rate, is_full = num_epochs or EPOCHS[network], learning_rate or RATES[network], size == "full"
    if network == "fashion_mnist":
        images = image_classification(dataset or "fashion_mnist", image_size=28)
        widths = (32, 96, 192) if is_full else (8, 24, 48)
        rates = {"learning_rate": rate, "weight_decay": 0.05, "label_smoothing": 0.1}
        return recipe(images, widths, 250, epochs, seed=seed, **rates)
    if network == "mnist_cnn":
        data: Any = image_classification(dataset or "auto")
        channels, hidden = ((32,), (128,)) if is_full else ((8,), (32,))
        learned = task.classification(CNN(channels, hidden, data.num_classes))
    else:
        data = language_modeling(dataset or "auto", sequence_length=64, tokenizer="characters")
        model = Llama(data.vocab_size, *((96, 4, 4) if is_full else (48, 2, 2)), is_tied=True)
        learned = task.language_model(model)
    num_steps = data.steps(epochs, 64)
    schedule = optimizers.cosine(rate, num_steps, warmup_steps=num_steps // 10)
    tx = optimizers.adamw(schedule, weight_decay=0.05)
    return Experiment(data=data, task=learned, tx=tx, num_steps=num_steps, batch_size=64, seed=seed)


def fine_tuning(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the options of the training after a compression: a third of the epochs and of the rate."""
    network = options["network"]
    epochs = options["num_epochs"] or EPOCHS[network]
    rate = options["learning_rate"] or RATES[network]
    return {"num_epochs": max(1, epochs // 3), "learning_rate": rate / 3}


if __name__ == "__main__":
    compression_main(experiment, fine_tuning, lambda options: {"size": "small"})
