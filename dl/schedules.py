"""Learning-rate schedules.

A schedule is a function from the step (0 at the first update) to the rate. `plateau` is the exception: it
follows the loss, so its state stands in the optimizer's.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

Schedule = Callable[[jax.Array | int], jax.Array | float]


def constant(learning_rate: float, *, warmup_steps: int = 0) -> Schedule:
    """Returns the rate, after a linear rise from 0 over `warmup_steps`."""
    return _warm(learning_rate, warmup_steps, optax.constant_schedule(learning_rate))


def linear(learning_rate: float, num_steps: int, *, warmup_steps: int = 0, end: float = 0.0) -> Schedule:
    """Returns a linear rise over `warmup_steps`, then a linear fall to `end` at `num_steps`."""
    fall = optax.linear_schedule(learning_rate, end, max(num_steps - warmup_steps, 1))
    return _warm(learning_rate, warmup_steps, fall)


def cosine(learning_rate: float, num_steps: int, *, warmup_steps: int = 0, end: float = 0.0) -> Schedule:
    """Returns a linear rise over `warmup_steps`, then half a cosine down to `end` at `num_steps`.

    Source: Loshchilov & Hutter 2017, eq. 5, without restarts.
    """
    alpha = end / learning_rate if end else 0.0
    fall = optax.cosine_decay_schedule(learning_rate, max(num_steps - warmup_steps, 1), alpha)
    return _warm(learning_rate, warmup_steps, fall)


def step(
    learning_rate: float,
    boundaries: Sequence[int],
    *,
    factor: float = 0.1,
    warmup_steps: int = 0,
) -> Schedule:
    """Returns the rate, multiplied by `factor` at each boundary (counted from the first step)."""
    scales = {boundary - warmup_steps: factor for boundary in boundaries}
    fall = optax.piecewise_constant_schedule(learning_rate, scales)
    return _warm(learning_rate, warmup_steps, fall)


def wsd(
    learning_rate: float, num_steps: int, *, decay_steps: int, warmup_steps: int = 0, end: float = 0.0
) -> Schedule:
    """Returns warm-up, stable, decay: the rate, and over the last `decay_steps` a linear fall to `end`.

    A run can be prolonged from any step of its stable part, which a cosine does not allow (Hu et al. 2024,
    "MiniCPM", §4).

    Raises:
      ValueError: warm-up and decay do not fit into `num_steps`.
    """
    if warmup_steps + decay_steps > num_steps:
        raise ValueError(
            f"warmup_steps={warmup_steps} and decay_steps={decay_steps} exceed num_steps={num_steps}; "
            "shorten one of them"
        )
    fall = optax.linear_schedule(
        learning_rate, end, max(decay_steps, 1), num_steps - warmup_steps - decay_steps
    )
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
    """Returns the rate, multiplied by `factor` whenever the training loss stops falling.

    Every recipe takes it as its `learning_rate`; the train step hands the loss to the optimizer.

    Args:
      learning_rate: at the start.
      factor: in (0, 1).
      patience: windows in a row without improvement after which the rate falls.
      window: steps whose mean loss counts as one observation, for example an epoch's: the loss of single
        batches is too noisy to compare.
      min_improvement: the fraction of the best loss by which a better one must be lower.
      end: the rate never falls below.
    """
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
    """A schedule that keeps state (optax's protocol `StatefulSchedule`); `plateau` makes one."""

    learning_rate: float
    watch: optax.GradientTransformationExtraArgs

    def init(self) -> Any:
        return self.watch.init(jnp.zeros(()))

    def update(self, state: Any, *, value: jax.Array, **extra: Any) -> Any:
        """Returns the state after a step whose loss was `value`."""
        return self.watch.update(jnp.zeros(()), state, value=value)[1]

    def __call__(self, state: Any, **extra: Any) -> jax.Array:
        return self.learning_rate * state.scale


def _warm(peak: float, warmup_steps: int, after: Schedule) -> Schedule:
    if not warmup_steps:
        return after
    # Starts above 0, so that the first step already moves: peak / warmup_steps, 2 peak / warmup_steps, …
    rise = optax.linear_schedule(peak / warmup_steps, peak, max(warmup_steps - 1, 1))
    return optax.join_schedules([rise, after], [warmup_steps])
