"""Optimizer recipes over optax.

A recipe is a function that returns a `GradientTransformation`; its state tells the current learning rate
under the name `learning_rate`. The rate is a number or a schedule (`dl.schedules`, whose names stand here
too). θ are the parameters, g the gradient, α the rate. Options of most recipes: `clip_norm`, the global norm
that a gradient is scaled down to before all else, and `weight_decay`, λ, which spares biases and the scales
of norms and is decoupled (θ ← θ − α λ θ beside the step) unless the recipe says otherwise.

Sharpness-aware minimisation is no recipe but a `grad_fn`: `gradients.sharpness_aware_gradient`.
"""

from dl.optimizers.adaptive import adafactor, adagrad, adam, adamw, lion, rmsprop
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
    "hidden_kernels",
    "kernels",
    "lamb",
    "lars",
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
