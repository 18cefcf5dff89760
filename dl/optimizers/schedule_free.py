"""Schedule-free optimizers, which evaluate an average of their iterates instead of decaying the rate."""

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
    """Returns AdamW that averages its iterates instead of decaying the learning rate.

    Gradients are taken at y = (1 − β₁) z + β₁ x, the parameters in `state.params`. z takes the steps of Adam
    without momentum. x is the average of z, weighted by the squared rate. `state.eval_params` returns x,
    which is evaluated. The weight decay is computed at y. β₁ must be above 0. Use a constant rate with
    warm-up.

    Source: Defazio et al. 2024, algorithm 1.

    Raises:
      UserError: an argument is out of range, or the rate is a `plateau`.
    """
    if isinstance(learning_rate, Plateau):
        raise UserError(
            "learning_rate=plateau(...) cannot be used with schedule_free_adamw; give a number or another "
            "schedule"
        )
    check("b1", b1, Range(0, 1, above_low=True, below_high=True))
    check_moments(b1, b2, eps)
    steps = recipe(
        clip_norm,
        optax.scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True),
        decay_weights(weight_decay),
        learning_rate=learning_rate,
    )
    # optax counts steps from 1 here, and from 0 in `recipe`.
    rate = (lambda count: learning_rate(count - 1)) if callable(learning_rate) else learning_rate
    return optax.contrib.schedule_free(steps, rate, b1)
