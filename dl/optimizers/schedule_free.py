"""Optimizers that need no schedule, because they evaluate an average of their steps."""

import optax

from dl.errors import UserError
from dl.optimizers.transforms import check_moments, decay_weights, recipe
from dl.ranges import Range, check
from dl.schedules import Plateau, Schedule


def schedule_free_adamw(
    learning_rate: float | Schedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    *,
    weight_decay: float = 1e-2,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """Returns AdamW that averages instead of lowering its rate (Defazio et al. 2024, algorithm 1).

    Gradients are taken at y = (1 − β₁) z + β₁ x, which is what `state.params` holds; z makes Adam's steps
    without momentum; x is the average of z weighted by the squared rate, and `state.eval_params` returns it:
    that is what is evaluated. β₁ > 0. Give a constant rate with warm-up. The weight decays at y.
    """
    if isinstance(learning_rate, Plateau):
        raise UserError("learning_rate=plateau(...) is of no use to schedule_free_adamw; give it a number")
    check("b1", b1, Range(0, 1, above_low=True, below_high=True))
    check_moments(b1, b2, eps)
    steps = recipe(
        clip_norm,
        optax.scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True),
        decay_weights(weight_decay),
        learning_rate=learning_rate,
    )
    # optax counts from 1 here, and from 0 in the recipe.
    rate = (lambda count: learning_rate(count - 1)) if callable(learning_rate) else learning_rate
    return optax.contrib.schedule_free(steps, rate, b1)
