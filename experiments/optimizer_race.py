"""Every optimizer on the same task, each with its learning rate tuned by the same budget.

    python -m experiments.optimizer_race                     # the embedded digits
    python -m experiments.optimizer_race --dataset mnist

Eleven rates from 1e-4 to 10 with three seeds each choose by validation loss; ten fresh seeds are measured.
"""

import functools
from collections.abc import Callable

import optax

from dl import Experiment, PositiveFloat, PositiveInt, Seed, UserError, gradients, optimizers, task
from dl.data import image_classification, steps_per_epoch
from dl.models.mlp import MLP
from dl.studies import benchmark as race

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
    dataset: str = "digits",
    optimizer: str = "adamw",
    learning_rate: PositiveFloat = 1e-3,
    batch_size: PositiveInt = 128,
    num_epochs: PositiveInt = 20,
    seed: Seed = 0,
) -> Experiment:
    """A perceptron with two hidden layers; the rate rises for a tenth of the steps and falls by a cosine.

    Args:
      dataset: NAME of a prepared image-classification set, or a folder of images.
      optimizer: a recipe of this file; the race goes through all of them.
      learning_rate: the highest; the race tunes it.
      batch_size: examples of an update.
      num_epochs: passes over the training split.
      seed: the first one.
    """
    if optimizer not in RECIPES:
        raise UserError(f"--optimizer {optimizer} is none of {', '.join(RECIPES)}")
    data = image_classification(dataset)
    num_steps = num_epochs * steps_per_epoch(len(data.train), batch_size)
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
    race.main(experiment, "optimizer", list(RECIPES), "learning_rate", rates)
