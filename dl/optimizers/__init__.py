"""Optimizers, built from the transformations of optax.

Each function returns a `GradientTransformation` whose state holds the current learning rate under the name
`learning_rate`. The learning rate is a number or a schedule of `dl.schedules`, whose names are available here
too. In the docstrings θ are the parameters, g is the gradient and α is the learning rate.

Most optimizers have two options. `clip_norm` is the largest global norm of the gradient: a longer gradient is
scaled down to it first. `weight_decay` is λ. It does not apply to biases and the scales of norms. It is
decoupled (θ ← θ − α λ θ, in addition to the step) unless the docstring states otherwise.

Sharpness-aware minimisation is a `grad_fn`, not an optimizer: `gradients.sharpness_aware_gradient`.
"""

from dl.optimizers.adaptive import adafactor, adagrad, adam, adamw, lion, rmsprop
from dl.optimizers.fine_tuning import depth_of_path, gradual_unfreezing, layer_wise_decay
from dl.optimizers.large_batch import lamb, lars
from dl.optimizers.momentum import sgd
from dl.optimizers.muon import hidden_kernels, muon, muon_like_adamw
from dl.optimizers.partition import by_path
from dl.optimizers.schedule_free import schedule_free_adamw
from dl.penalties import kernels
from dl.schedules import constant, cosine, linear, plateau, step, wsd

__all__ = [
    "adafactor",
    "adagrad",
    "adam",
    "adamw",
    "by_path",
    "constant",
    "cosine",
    "depth_of_path",
    "gradual_unfreezing",
    "hidden_kernels",
    "kernels",
    "lamb",
    "lars",
    "layer_wise_decay",
    "linear",
    "lion",
    "muon",
    "muon_like_adamw",
    "plateau",
    "rmsprop",
    "schedule_free_adamw",
    "sgd",
    "step",
    "wsd",
]
