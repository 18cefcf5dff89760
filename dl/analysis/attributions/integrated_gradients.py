"""Explanations that integrate gradients along the way from a baseline to the input.

Shapes: N examples, B points of a batch, K baselines.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from jax.tree_util import Partial

from dl.analysis.attributions.gradients import weighted_gradients
from dl.analysis.attributions.scoring import (
    Score,
    backgrounds_of,
    batch_size_of,
    floats_of,
    in_batches,
    partial_of,
    scores_of,
    targets_of,
)
from dl.errors import UserError
from dl.ranges import POSITIVE, STEPS, check, check_count

FIRST_INTERVALS = 16
_CANCELLING = 0.1
_ROUNDING = 1e-5  # of float32 scores; a difference below it cannot be measured


class IntegratedGradients(NamedTuple):
    """Attributions, and how far they are from complete.

    Attributes:
      attributions: shape of the inputs.
      errors: the completeness error of each example: the sum of its attributions minus the difference of the
        scores of input and baseline, as a share of that difference, shape (N,). Where attributions of both
        signs nearly cancel, it is a share of a tenth of their absolute sum.
      num_intervals: number of intervals of the sum of each example, shape (N,).
    """

    attributions: np.ndarray
    errors: np.ndarray
    num_intervals: np.ndarray


def integrated_gradients(
    score: Score,
    inputs: Any,
    targets: Any = None,
    *,
    baseline: Any = 0.0,
    tolerance: float = 0.01,
    max_intervals: int = 4096,
    batch_size: int | None = None,
) -> IntegratedGradients:
    """Returns integrated gradients (Sundararajan et al. 2017, eq. 1).

    The integral is a sum over the midpoints of intervals. Their number of intervals is doubled for each
    example until the attributions are complete: they sum to the difference of the scores of input and
    baseline (proposition 1).

    Args:
      score: the score, from inputs (B, …) to (B, C).
      inputs: N examples, floats of shape (N, …).
      targets: index of the score to explain, one or (N,). `None` means the highest score of each example.
      baseline: a number, one example, or one baseline for each example.
      tolerance: the largest completeness error, a share; see `IntegratedGradients.errors`.
      max_intervals: the largest number of intervals.
      batch_size: number of points in memory. `None` chooses it by the size of the activations.

    Raises:
      UserError: an argument is out of range, or the tolerance is not reached.
    """
    score, inputs = partial_of(score), floats_of(inputs)
    check("tolerance", tolerance, POSITIVE)
    max_intervals = check_count("max_intervals", max_intervals, STEPS)
    size = batch_size_of(score, inputs, batch_size)
    targets_N = targets_of(score, inputs, targets, size)
    baselines = backgrounds_of(baseline, inputs)
    if len(baselines) not in (1, len(inputs)):
        raise UserError(f"baseline has {len(baselines)} examples; give one, or one for each of {len(inputs)}")
    baselines = np.broadcast_to(baselines, inputs.shape)
    rows = np.arange(len(inputs))
    ends, starts = (
        scores_of(score, values, size)[rows, targets_N].astype(np.float64) for values in (inputs, baselines)
    )
    found = [
        _integral(score, *one, tolerance, max_intervals, size)
        for one in zip(inputs, baselines, targets_N, starts, ends, strict=True)
    ]
    attributions, errors, num_intervals = (np.stack(part) for part in zip(*found, strict=True))
    is_above = ~(errors <= tolerance)  # also where the score is not a number
    if is_above.any():
        raise UserError(
            f"the completeness error of {is_above.sum()} of {len(inputs)} examples is above "
            f"tolerance={tolerance:g} after max_intervals={max_intervals}, at most {errors.max():.3g}; raise "
            "one of the two"
        )
    return IntegratedGradients(attributions, errors, num_intervals)


def expected_gradients(
    score: Score,
    inputs: Any,
    targets: Any = None,
    *,
    background: Any,
    num_samples: int = 200,
    seed: int = 0,
    batch_size: int | None = None,
) -> np.ndarray:
    """Returns expected gradients, a sampled gradient SHAP (Erion et al. 2021, eq. 3).

    They are integrated gradients in the mean over the baselines of a background. Baselines and places on the
    way are drawn in pairs, places in strata, alike for all examples.

    Args:
      score: the score, from inputs (B, …) to (B, C).
      inputs: N examples, floats of shape (N, …).
      targets: index of the score to explain, one or (N,). `None` means the highest score of each example.
      background: K examples to compare with, such as a sample of the training split.
      num_samples: number of pairs of a baseline and a place.
      seed: random seed of the pairs.
      batch_size: number of points in memory. `None` chooses it by the size of the activations.

    Raises:
      UserError: an argument is out of range.
    """
    score, inputs = partial_of(score), floats_of(inputs)
    num_samples = check_count("num_samples", num_samples, STEPS)
    size = batch_size_of(score, inputs, batch_size)
    targets_N = targets_of(score, inputs, targets, size)
    backgrounds, rng = backgrounds_of(background, inputs), np.random.default_rng(seed)
    chosen = rng.permutation(rng.permutation(len(backgrounds))[np.arange(num_samples) % len(backgrounds)])
    places = ((np.arange(num_samples) + rng.random(num_samples)) / num_samples).astype(np.float32)
    return np.stack(
        [
            _mean_on_way(score, example, backgrounds, chosen, target, places, size)
            for example, target in zip(inputs, targets_N, strict=True)
        ]
    ).astype(inputs.dtype)


def _integral(
    score: Partial,
    example: np.ndarray,
    baseline: np.ndarray,
    target: np.int32,
    start: float,
    end: float,
    tolerance: float,
    max_intervals: int,
    size: int,
) -> tuple[np.ndarray, np.float64, int]:
    floor = _ROUNDING * (abs(start) + abs(end)) / tolerance
    least = max(abs(end - start), floor, np.finfo(np.float64).tiny)
    intervals = min(FIRST_INTERVALS, max_intervals)
    while True:
        # Midpoints, because a ReLU without a bias has no gradient at the baseline zero.
        places = (np.arange(intervals) + 0.5) / intervals
        which = np.zeros(intervals, np.int32)
        attributions = _mean_on_way(score, example, baseline[None], which, target, places, size)
        difference = max(least, _CANCELLING * abs(attributions).sum())
        error = np.float64(abs(attributions.sum() - (end - start)) / difference)
        if error <= tolerance or 2 * intervals > max_intervals:
            return attributions.astype(example.dtype), error, intervals
        intervals *= 2


def _mean_on_way(
    score: Partial,
    example: np.ndarray,
    baselines: np.ndarray,
    which: np.ndarray,
    target: np.int32,
    places: np.ndarray,
    size: int,
) -> np.ndarray:
    """Returns the mean of (input − baseline) × gradient at places between them, in float64."""
    total = np.zeros(example.shape)
    for (which_B, places_B), count in in_batches(size, which, places.astype(np.float32)):
        weights_B = (np.arange(size) < count).astype(np.float32)
        total += _on_way(score, example, baselines[which_B], target, places_B, weights_B)
    return total / len(places)


@jax.jit
def _on_way(
    score: Partial,
    example: jax.Array,
    baselines_B: jax.Array,
    target: jax.Array,
    places_B: jax.Array,
    weights_B: jax.Array,
) -> jax.Array:
    shape = (-1,) + (1,) * example.ndim
    places = places_B.reshape(shape).astype(example.dtype)
    ways_B = example[None] - baselines_B
    points_B = baselines_B + places * ways_B
    gradients_B = weighted_gradients(score, points_B, target, weights_B)
    return (ways_B * gradients_B).sum(0)
