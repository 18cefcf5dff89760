"""Learning-rate schedules.

A schedule is a function from the step (0 at the first update) to the learning rate. `plateau` is the
exception: it depends on the loss, so its state is a part of the optimizer's state.

Every schedule raises UserError for a rate or a number of steps that is out of range. It also raises UserError
for a warm-up that is longer than the run, because the rate would never reach its peak.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dl.errors import UserError
from dl.ranges import BELOW_ONE, NON_NEGATIVE, POSITIVE, STEPS, Range, check, check_count

Schedule = Callable[[jax.Array | int], jax.Array | float]


def constant(learning_rate: float, *, warmup_steps: int = 0, num_steps: int | None = None) -> Schedule:
    """Returns a constant rate, after a linear warm-up from 0 over `warmup_steps`.

    Args:
      learning_rate: rate after the warm-up.
      warmup_steps: number of steps of the warm-up.
      num_steps: number of steps of the run. If it is given, the warm-up must end within the run.
    """
    warmup_steps, _ = _judge(learning_rate, warmup_steps, num_steps)
    return _warm(learning_rate, warmup_steps, optax.constant_schedule(learning_rate))


def linear(learning_rate: float, num_steps: int, *, warmup_steps: int = 0, end: float = 0.0) -> Schedule:
    """Returns a linear warm-up over `warmup_steps`, then a linear decay to `end` at `num_steps`."""
    warmup_steps, fall_steps = _judge(learning_rate, warmup_steps, num_steps, end)
    fall = optax.linear_schedule(learning_rate, end, max(fall_steps, 1))
    return _warm(learning_rate, warmup_steps, fall)


def cosine(learning_rate: float, num_steps: int, *, warmup_steps: int = 0, end: float = 0.0) -> Schedule:
    """Returns a linear warm-up over `warmup_steps`, then a cosine decay to `end` at `num_steps`.

    Source: Loshchilov & Hutter 2017, eq. 5, without restarts.
    """
    warmup_steps, fall_steps = _judge(learning_rate, warmup_steps, num_steps, end)
    alpha = end / learning_rate if end else 0.0
    fall = optax.cosine_decay_schedule(learning_rate, max(fall_steps, 1), alpha)
    return _warm(learning_rate, warmup_steps, fall)


def step(
    learning_rate: float,
    boundaries: Sequence[int],
    *,
    factor: float = 0.1,
    warmup_steps: int = 0,
    num_steps: int | None = None,
) -> Schedule:
    """Returns a rate that is multiplied by `factor` at each boundary (counted from the first step).

    A boundary within the warm-up takes effect there: from then on the rate rises to the lower value.

    Args:
      learning_rate: rate before the first boundary.
      boundaries: steps in increasing order, at least 1.
      factor: factor on the rate at each boundary.
      warmup_steps: number of steps of a linear warm-up from 0.
      num_steps: number of steps of the run. If it is given, warm-up and boundaries must lie within the run.
    """
    warmup_steps, _ = _judge(learning_rate, warmup_steps, num_steps)
    check("factor", factor, POSITIVE)
    last = Range(1, STEPS.high if num_steps is None else num_steps - 1)
    boundaries = [check_count("boundary", boundary, last) for boundary in boundaries]
    for before, after in itertools.pairwise(boundaries):
        if after <= before:
            raise UserError(f"boundaries={boundaries} do not increase ({after} after {before}); sort them")
    base = _warm(learning_rate, warmup_steps, optax.constant_schedule(learning_rate))
    scale = optax.piecewise_constant_schedule(1.0, dict.fromkeys(boundaries, factor))
    return lambda count: base(count) * scale(count)


def wsd(
    learning_rate: float, num_steps: int, *, decay_steps: int, warmup_steps: int = 0, end: float = 0.0
) -> Schedule:
    """Returns a warmup-stable-decay schedule: a constant rate, then a linear decay to `end`.

    The decay takes the last `decay_steps`. Unlike a cosine, it allows to continue a run from any step of its
    stable part.

    Source: Hu et al. 2024, "MiniCPM", section 4.

    Raises:
      UserError: warm-up and decay do not fit into `num_steps`.
    """
    decay_steps = check_count("decay_steps", decay_steps, Range(0, STEPS.high))
    warmup_steps, rest = _judge(learning_rate, warmup_steps, num_steps, end)
    if decay_steps > rest:
        raise UserError(
            f"warmup_steps={warmup_steps} and decay_steps={decay_steps} exceed num_steps={num_steps}; "
            "shorten one of them"
        )
    fall = optax.linear_schedule(learning_rate, end, max(decay_steps, 1), rest - decay_steps)
    return _warm(learning_rate, warmup_steps, fall)


def plateau(
    learning_rate: float,
    *,
    factor: float = 0.1,
    patience: int = 10,
    window: int = 1,
    min_improvement: float = 1e-4,
    end: float = 0.0,
) -> "Plateau":
    """Returns a rate that is multiplied by `factor` whenever the training loss stops falling.

    Every optimizer accepts it as its `learning_rate`. The train step gives the loss to the optimizer.

    Args:
      learning_rate: initial rate.
      factor: factor on the rate, in (0, 1).
      patience: number of consecutive windows without improvement after which the rate is reduced.
      window: number of steps whose mean loss is one observation, for example the steps of an epoch. The loss
        of single batches is too noisy to compare.
      min_improvement: smallest improvement that counts, as a fraction of the best loss, in [0, 1).
      end: smallest rate.
    """
    check("learning_rate", learning_rate, NON_NEGATIVE)
    check("factor", factor, Range(0, 1, above_low=True, below_high=True))
    patience, window = (
        check_count(name, value, STEPS) for name, value in (("patience", patience), ("window", window))
    )
    check("min_improvement", min_improvement, BELOW_ONE)
    _check_end(learning_rate, end)
    watch = optax.contrib.reduce_on_plateau(
        factor,
        patience,
        rtol=min_improvement,
        accumulation_size=window,
        min_scale=end / learning_rate if learning_rate else 0.0,
    )
    return Plateau(learning_rate, watch)


@dataclasses.dataclass(frozen=True)
class Plateau:
    """A schedule with a state (optax's protocol `StatefulSchedule`); `plateau` makes one."""

    learning_rate: float
    watch: optax.GradientTransformationExtraArgs

    def init(self) -> Any:
        return self.watch.init(jnp.zeros(()))

    def update(self, state: Any, *, value: jax.Array, **extra: Any) -> Any:
        """Returns the state after a step whose loss was `value`."""
        return self.watch.update(jnp.zeros(()), state, value=value)[1]

    def __call__(self, state: Any, **extra: Any) -> jax.Array:
        return self.learning_rate * state.scale


def _judge(
    learning_rate: float, warmup_steps: int, num_steps: int | None, end: float = 0.0
) -> tuple[int, int]:
    """Returns the number of steps of the warm-up and after it. Raises UserError for invalid arguments."""
    check("learning_rate", learning_rate, NON_NEGATIVE)
    _check_end(learning_rate, end)
    warmup_steps = check_count("warmup_steps", warmup_steps, Range(0, STEPS.high))
    if num_steps is None:
        return warmup_steps, 0
    num_steps = check_count("num_steps", num_steps, STEPS)
    if warmup_steps > num_steps:
        raise UserError(
            f"warmup_steps={warmup_steps} is longer than the run, num_steps={num_steps}; shorten the "
            f"warm-up, so that the learning rate reaches {learning_rate}"
        )
    return warmup_steps, num_steps - warmup_steps


def _check_end(learning_rate: float, end: float) -> None:
    is_known = not isinstance(learning_rate, jax.core.Tracer)
    check("end", end, Range(0, float(learning_rate)) if is_known else NON_NEGATIVE)


def _warm(peak: float, warmup_steps: int, after: Schedule) -> Schedule:
    if not warmup_steps:
        return after
    # The rate starts above 0, so that the first step has an effect: peak / warmup_steps, 2 peak / …
    rise = optax.linear_schedule(peak / warmup_steps, peak, max(warmup_steps - 1, 1))
    return optax.join_schedules([rise, after], [warmup_steps])
