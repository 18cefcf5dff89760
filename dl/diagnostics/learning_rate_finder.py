"""The learning-rate range test: trains while the rate grows, and finds where the loss falls fastest.

Source: Smith 2017, "Cyclical learning rates for training neural networks", 3.3, with an exponential increase
and a smoothed loss, as in fastai.
"""

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from dl.data.pipeline import Batches
from dl.diagnostics.overfit import judged_loss, make_update
from dl.errors import UserError
from dl.experiment import Experiment
from dl.optimizers.transforms import with_rate
from dl.ranges import POSITIVE, STEPS, check, check_count
from dl.sharding import make_mesh
from dl.training.step import StepConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMOOTHING = 0.9  # decay of the moving average of the loss
WARMUP = 10  # steps until the average is stable enough to estimate a slope
DIVERGED = 4.0  # factor over the best loss


@dataclasses.dataclass(frozen=True)
class RateTest:
    """The result of a learning-rate range test.

    Attributes:
      rates: the learning rate of each step.
      losses: the loss of each batch before its update.
      smoothed: the moving average of `losses`, with bias correction.
      has_diverged: whether the loss diverged before the highest rate. If it was not finite at the first step,
        `rates` and `losses` are empty.
      suggested: the rate where `smoothed` falls fastest over the logarithm of the rate. `None` if it never
        falls.
      low: the rate at a tenth of the decrease to the minimum, or `suggested` if that is smaller.
      high: the rate where `smoothed` is lowest.
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    has_diverged: bool
    suggested: float | None
    low: float | None
    high: float | None


def find_learning_rate(
    experiment: Experiment, low: float = 1e-6, high: float = 10.0, num_steps: int = 100
) -> RateTest:
    """Trains from the initial parameters while the rate grows exponentially from `low` to `high`.

    Batches, augmentation, dropout, optimizer and weight decay are those of the first steps of the run. Only
    its schedule is replaced. The test ends early if the smoothed loss is over four times the best one. If the
    best is not positive, the limit is above it by three times its distance from the first loss or from 0. The
    test runs on the first device, and nothing is saved.

    Raises:
      UserError: an empty range, too few steps, or an optimizer whose rate cannot be replaced.
    """
    check("low", low, POSITIVE)
    check("high", high, POSITIVE)
    num_steps = check_count("steps", num_steps, STEPS)
    if not low < high:
        raise UserError(f"low={low:g} is not smaller than high={high:g}; choose low < high")
    if num_steps < 2 * WARMUP:
        raise UserError(f"steps={num_steps} is too small for a curve; choose at least {2 * WARMUP}")
    growth = math.log(high / low) / (num_steps - 1)
    rates = low * np.exp(growth * np.arange(num_steps))
    mesh = make_mesh({"data": 1})
    batches = Batches(experiment.data.train, experiment.batch_size, mesh, seed=experiment.seed)
    state, update = make_update(
        experiment,
        StepConfig.of(experiment).loss_fn,
        with_rate(experiment.tx, lambda step: low * jnp.exp(growth * step)),
        batches[0],
    )
    losses: list[float] = []
    smoothed: list[float] = []
    average = 0.0
    for step, batch in enumerate(batches.iterate(0, num_steps)):
        state, metrics = update(state, batch)
        _check_rate(metrics, rates[step])
        loss = judged_loss(metrics)
        if not math.isfinite(loss):
            break
        losses.append(loss)
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        smoothed.append(average / (1 - SMOOTHING ** (step + 1)))
        if smoothed[-1] > _explosion(smoothed):
            break
    has_diverged = step < num_steps - 1 or not math.isfinite(loss)
    return _judge(rates[: len(losses)], np.array(losses), np.array(smoothed), has_diverged)


def _explosion(smoothed: list[float]) -> float:
    """Returns the loss above which the test ends."""
    best = min(smoothed)
    if best > 0:
        return DIVERGED * best
    # A negative log-likelihood may be below 0.
    return best + (DIVERGED - 1) * max(abs(best), smoothed[0] - best)


def _check_rate(metrics: Any, wanted: float) -> None:
    used = metrics.get("learning_rate")
    if used is None or not math.isclose(float(used.compute()), wanted, rel_tol=1e-3):
        raise UserError(
            "the learning rate of this optimizer cannot be replaced; make the optimizer with a function of "
            "dl.optimizers"
        )


def _judge(rates: np.ndarray, losses: np.ndarray, smoothed: np.ndarray, has_diverged: bool) -> RateTest:
    suggested = low = high = None
    lowest = WARMUP + int(smoothed[WARMUP:].argmin()) if len(smoothed) > WARMUP else 0
    # After the lowest loss the loss may diverge and fall again, so later steps are ignored.
    falling = slice(WARMUP, lowest + 1)
    if lowest > WARMUP:
        slopes = np.gradient(smoothed[falling], np.log(rates[falling]))
        start = smoothed[WARMUP]
        has_started = smoothed[falling] <= start - 0.1 * (start - smoothed[lowest])
        suggested = float(rates[falling][slopes.argmin()])
        low = min(float(rates[falling][has_started.argmax()]), suggested)
        high = float(rates[lowest])
    return RateTest(rates, losses, smoothed, has_diverged, suggested, low, high)


def plot_rates(test: RateTest, title: str) -> "Figure":
    """Returns the curve of the loss over the rate, with the suggestion and the range."""
    from matplotlib.figure import Figure  # drawn by Agg, without a screen

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xscale="log", xlabel="learning rate", ylabel="training loss", title=title)
    axes.plot(test.rates, test.losses, color="0.8", label="each batch")
    axes.plot(test.rates, test.smoothed, label="moving average")
    if test.suggested and test.low and test.high:
        axes.axvspan(test.low, test.high, alpha=0.15, label=f"falls, {test.low:.2g} to {test.high:.2g}")
        axes.axvline(test.suggested, color="C3", label=f"steepest, {test.suggested:.2g}")
    if len(test.smoothed):
        first, best = test.smoothed[0], test.smoothed.min()
        axes.set_ylim(top=first + 0.5 * max(abs(first), first - best), bottom=min(0, 1.2 * best))
    axes.legend()
    return figure
