"""Shapley values of a score: how much each feature adds to it in the mean over all orders (SHAP).

The value of a coalition of features is the mean score of copies of the input whose other features come from a
background (Lundberg & Lee 2017; the interventional value of Janzing et al. 2020). Shapley values φ add up to
the score of the input minus the mean score of the background. `expected_gradients` estimates them by
gradients.

Shapes: N examples, M features, S coalitions, K backgrounds, T values of targets.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from dl.analysis.attributions.features import kept_places, segments_of
from dl.analysis.attributions.scoring import (
    Score,
    backgrounds_of,
    batch_size_of,
    masked_scores,
    partial_of,
    targets_of,
)
from dl.errors import UserError
from dl.ranges import STEPS, check_count

MAX_EXACT = 12  # features; every one more doubles the coalitions

Value = Callable[[np.ndarray], np.ndarray]  # from coalitions, bool (S, M), to their values, (S,)


def exact_shapley(
    score: Score,
    inputs: Any,
    targets: Any = None,
    *,
    background: Any,
    segments: Any = None,
    batch_size: int | None = None,
) -> np.ndarray:
    """Returns Shapley values from all coalitions of at most 12 features (Shapley 1953).

    Args:
      score: the score, from inputs (B, …) to (B, C).
      inputs: N examples of shape (N, …).
      targets: index of the score to explain, one or (N,). `None` means the highest score of each example.
      background: what absent features are replaced by: a number, an example, or K examples to take the mean
        over.
      segments: which feature each place of an example is, whole numbers over its first axes; see
        `features.grid_superpixels`. `None` makes each place of the first axis a feature.
      batch_size: number of copies in memory. `None` chooses it by the size of the activations.

    Returns:
      Values of shape (N, M), float64.

    Raises:
      UserError: there are more features, or an argument does not fit.
    """

    def solve(value: Value, num_features: int) -> np.ndarray:
        if num_features > MAX_EXACT:
            raise UserError(
                f"exact_shapley has {num_features} features; it takes at most {MAX_EXACT}; group them "
                "by segments, or use kernel_shap or permutation_shap"
            )
        masks_SM = _all_coalitions(num_features)
        values_S, sizes_S = value(masks_SM), masks_SM.sum(1)
        # Of all orders, the share in which exactly a coalition comes before one more feature.
        share = [1 / (num_features * math.comb(num_features - 1, s)) for s in range(num_features)]
        found = np.zeros(num_features)
        for feature in range(num_features):
            without = np.flatnonzero(~masks_SM[:, feature])
            gains = values_S[without + (1 << feature)] - values_S[without]
            found[feature] = (np.take(share, sizes_S[without]) * gains).sum()
        return found

    return _explain(solve, score, inputs, targets, background, segments, batch_size)


def kernel_shap(
    score: Score,
    inputs: Any,
    targets: Any = None,
    *,
    background: Any,
    segments: Any = None,
    num_coalitions: int = 2048,
    seed: int = 0,
    batch_size: int | None = None,
) -> np.ndarray:
    """Returns Shapley values by a weighted linear regression on coalitions (Lundberg & Lee 2017, theorem 2).

    With as many coalitions as there are, all are used, and the values are exact. Otherwise coalitions are
    drawn in pairs of complements, by the weights of the Shapley kernel (Covert & Lee 2021), alike for all
    examples. Their values always sum to the difference of the scores. See `exact_shapley` for the other
    arguments, the result and the errors.

    Args:
      num_coalitions: number of coalitions besides the empty and the full one.
      seed: random seed of the coalitions.
    """
    num_coalitions = check_count("num_coalitions", num_coalitions, STEPS)

    def solve(value: Value, num_features: int) -> np.ndarray:
        if num_features == 1:
            return np.diff(value(_all_coalitions(1)))
        if num_features < 31 and num_coalitions >= 2**num_features - 2:
            masks_SM = _all_coalitions(num_features)[1:-1]
            sizes = masks_SM.sum(1)
            of_size = [math.comb(num_features, s) * s * (num_features - s) for s in range(num_features + 1)]
            weights_S = 1 / np.take(np.array(of_size, float), sizes)
        elif num_coalitions < num_features:
            raise UserError(
                f"num_coalitions={num_coalitions} is too few for {num_features} features; give at least as "
                "many, better several times as many"
            )
        else:
            masks_SM = _drawn_coalitions(num_features, num_coalitions, np.random.default_rng(seed))
            weights_S = np.ones(len(masks_SM))
        ends = np.repeat([[False], [True]], num_features, 1)
        values_S = value(np.concatenate([ends, masks_SM]))
        empty, full = values_S[:2]
        # The last value is what is left of the difference, so that the sum holds exactly.
        columns = masks_SM[:, :-1].astype(float) - masks_SM[:, -1:]
        rest_S = values_S[2:] - empty - masks_SM[:, -1] * (full - empty)
        root_S = np.sqrt(weights_S)
        found = np.linalg.lstsq(columns * root_S[:, None], rest_S * root_S, rcond=None)[0]
        return np.append(found, full - empty - found.sum())

    return _explain(solve, score, inputs, targets, background, segments, batch_size)


def permutation_shap(
    score: Score,
    inputs: Any,
    targets: Any = None,
    *,
    background: Any,
    segments: Any = None,
    num_permutations: int = 32,
    seed: int = 0,
    batch_size: int | None = None,
) -> np.ndarray:
    """Returns Shapley values in the mean over random orders of the features (Castro et al. 2009).

    Each order is used forwards and backwards (Mitchell et al. 2022, section 4.1), alike for all examples. The
    values always sum to the difference of the scores. See `exact_shapley` for the other arguments, the result
    and the errors.

    Args:
      num_permutations: number of orders, each of which takes 2 M scores.
      seed: random seed of the orders.
    """
    num_permutations = check_count("num_permutations", num_permutations, STEPS)

    def solve(value: Value, num_features: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        orders = [rng.permutation(num_features) for _ in range(num_permutations)]
        found = np.zeros(num_features)
        for order in orders:
            for way in (order, order[::-1]):
                ranks = np.argsort(way)
                masks_SM = ranks[None] < np.arange(num_features + 1)[:, None]
                found[way] += np.diff(value(masks_SM))
        return found / (2 * num_permutations)

    return _explain(solve, score, inputs, targets, background, segments, batch_size)


def _explain(
    solve: Callable[[Value, int], np.ndarray],
    score: Score,
    inputs: Any,
    targets: Any,
    background: Any,
    segments: Any,
    batch_size: int | None,
) -> np.ndarray:
    score, inputs = partial_of(score), np.asarray(inputs)
    size = batch_size_of(score, inputs, batch_size)
    targets_N = targets_of(score, inputs, targets, size)
    backgrounds = backgrounds_of(background, inputs)
    feature_of_place = segments_of(segments, inputs[0])
    found = []
    for example, target in zip(inputs, targets_N, strict=True):

        def value(masks_SM: np.ndarray, example: np.ndarray = example, target: int = target) -> np.ndarray:
            def keep(rows: np.ndarray) -> np.ndarray:
                return kept_places(masks_SM[rows], feature_of_place, example)

            return masked_scores(score, example, backgrounds, keep, len(masks_SM), size)[:, target]

        found.append(solve(value, int(feature_of_place.max()) + 1))
    return np.stack(found)


def _all_coalitions(num_features: int) -> np.ndarray:
    """Returns all coalitions, bool, shape (2^M, M). Row r keeps the features that are bits of r."""
    return (np.arange(2**num_features)[:, None] >> np.arange(num_features)) & 1 == 1


def _drawn_coalitions(num_features: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Returns coalitions with the chance of the Shapley kernel, each followed by its complement."""
    sizes = np.arange(1, num_features)
    chances = 1 / (sizes * (num_features - sizes))
    drawn = rng.choice(sizes, (count + 1) // 2, p=chances / chances.sum())
    ranks = rng.permuted(np.tile(np.arange(num_features), (len(drawn), 1)), axis=1)
    masks = ranks < drawn[:, None]
    return np.stack([masks, ~masks], 1).reshape(-1, num_features)[: max(count, 2)]
