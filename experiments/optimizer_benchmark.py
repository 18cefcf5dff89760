"""A benchmark of all optimizers on the same task. The learning rate of each is tuned with the same budget.

    python -m experiments.optimizer_benchmark                # the embedded digits
    python -m experiments.optimizer_benchmark --dataset mnist

Each optimizer is trained at eleven learning rates from 1e-4 to 10, with three seeds at each rate. The rate
with the lowest mean validation loss is used for ten fresh seeds, and the benchmark shows their test accuracy.
"""

import functools
from collections.abc import Callable

import optax

from dl import Experiment, UserError, benchmark_main, gradients, optimizers, task
from dl.data import image_classification
from dl.models.mlp import MLP
from dl.option_types import BatchSize, DatasetName, LearningRate, NumEpochs, Seed

RECIPES: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": optimizers.sgd,
    "momentum": functools.partial(optimizers.sgd, momentum=0.9),
    "nesterov": functools.partial(optimizers.sgd, momentum=0.9, nesterov=True),
    "sam": functools.partial(optimizers.sgd, momentum=0.9),
    "adagrad": optimizers.adagrad,
    "rmsprop": optimizers.rmsprop,
    "adam": optimizers.adam,
    "adamw": optimizers.adamw,
    "lion": optimizers.lion,
    "lamb": optimizers.lamb,
    "lars": optimizers.lars,
    "adafactor": optimizers.adafactor,
    "muon": optimizers.muon_like_adamw,  # shares one rate with AdamW, so that one range of rates suits all
    "schedule_free_adamw": optimizers.schedule_free_adamw,
}


def experiment(
    dataset: DatasetName = "digits",
    optimizer: str = "adamw",
    learning_rate: LearningRate = 1e-3,
    batch_size: BatchSize = 128,
    num_epochs: NumEpochs = 20,
    seed: Seed = 0,
) -> Experiment:
    """Returns a perceptron with two hidden layers.

    The learning rate rises for a tenth of the steps, then falls along a cosine.

    Args:
      optimizer: Optimizer, such as sgd, adamw or muon. The benchmark measures all fourteen.
      learning_rate: Peak learning rate. The benchmark tunes it for each optimizer.
      seed: First random seed of initialisation and batch order.
    """
    if optimizer not in RECIPES:
        raise UserError(f"--optimizer {optimizer} is none of {', '.join(RECIPES)}")
    data = image_classification(dataset)
    num_steps = data.steps(num_epochs, batch_size)
    model = MLP(hidden=(128, 128), num_classes=data.num_classes)
    schedule = optimizers.cosine(learning_rate, num_steps, warmup_steps=num_steps // 10)
    if optimizer == "schedule_free_adamw":  # averages instead of lowering the rate
        schedule = optimizers.constant(learning_rate, warmup_steps=num_steps // 10)
    is_sam = optimizer == "sam"
    return Experiment(
        data=data,
        task=task.classification(model),
        tx=RECIPES[optimizer](schedule),
        grad_fn=gradients.sharpness_aware_gradient(0.05) if is_sam else gradients.mean_gradient,
        num_steps=num_steps,
        batch_size=batch_size,
        seed=seed,
    )


if __name__ == "__main__":
    rates = [10 ** (exponent / 2) for exponent in range(-8, 3)]
    benchmark_main(experiment, "optimizer", list(RECIPES), "learning_rate", rates)
