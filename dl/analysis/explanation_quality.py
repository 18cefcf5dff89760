"""The quality of explanations: whether they say what a model rests on.

Compare every number with those of the two trivial explanations, `random_maps` and `sobel_maps`, which do not
know the model. *Maps* are attributions of shape (N, …) over the first axes of an example, such as (N, H, W)
for images: sum attributions over channels before.

Shapes: N examples, P places of a map, T steps of a curve, H height, W width, C channels.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy import stats

from dl.analysis.attributions.features import kept_places
from dl.analysis.attributions.scoring import (
    Score,
    backgrounds_of,
    batch_size_of,
    floats_of,
    masked_scores,
    partial_of,
    scores_of,
    targets_of,
)
from dl.errors import UserError
from dl.ranges import POSITIVE, STEPS, check, check_count
from dl.types import Variables


class Curves(NamedTuple):
    """Scores while an input is taken apart or put together.

    Attributes:
      shares: share of the places that were changed, shape (T,), from 0 to 1.
      scores: score of the target, shape (N, T).
      areas: area below the curve of each example, shape (N,).
    """

    shares: np.ndarray
    scores: np.ndarray
    areas: np.ndarray


def deletion_curves(
    score: Score,
    inputs: Any,
    maps: Any,
    targets: Any = None,
    *,
    background: Any,
    num_steps: int = 20,
    batch_size: int | None = None,
) -> Curves:
    """Returns scores while places are replaced by a background, important ones first (Petsiuk et al. 2018).

    A lower area is better.

    Args:
      score: the score, from inputs (B, …) to (B, C), such as probabilities.
      inputs: N examples of shape (N, …).
      maps: attributions over the first axes of each example, shape (N, …).
      targets: index of the score, one or (N,). `None` means the highest score of each example.
      background: what replaces the places: a number, an example, or several examples to take the mean over.
      num_steps: number of steps from the whole input to the background.
      batch_size: number of copies in memory. `None` chooses it by the size of the activations.

    Raises:
      UserError: an argument is out of range or does not fit.
    """
    return _curves(score, inputs, maps, targets, background, num_steps, batch_size, is_deletion=True)


def insertion_curves(
    score: Score,
    inputs: Any,
    maps: Any,
    targets: Any = None,
    *,
    background: Any,
    num_steps: int = 20,
    batch_size: int | None = None,
) -> Curves:
    """Returns scores while places are put onto a background, important ones first (Petsiuk et al. 2018).

    A higher area is better. See `deletion_curves` for the arguments.
    """
    return _curves(score, inputs, maps, targets, background, num_steps, batch_size, is_deletion=False)


def pointing_hits(maps: Any, regions: Any) -> np.ndarray:
    """Returns whether the largest attribution lies in the region of the object, bool, shape (N,).

    The mean is the accuracy in the pointing game (Zhang et al. 2018, section 4.2), without a tolerance around
    the region. A random map hits with the region's share of the image.

    Args:
      maps: attributions, shape (N, …).
      regions: where the object is, bool, shape of the maps.

    Raises:
      UserError: the shapes differ.
    """
    maps, regions = np.asarray(maps), np.asarray(regions, bool)
    if maps.shape != regions.shape:
        raise UserError(f"maps has the shape {maps.shape} and regions {regions.shape}; they must be equal")
    rows = np.arange(len(maps))
    return regions.reshape(len(maps), -1)[rows, maps.reshape(len(maps), -1).argmax(1)]


def randomisation_correlations(
    explain: Callable[[Variables], Any],
    variables: Variables,
    fresh: Variables,
    layers: Sequence[str],
    *,
    is_cascading: bool = True,
) -> dict[str, float]:
    """Returns how alike explanations stay when layers get random parameters (Adebayo et al. 2018, 3).

    An explanation of what a model has learned must change: its correlation falls. It stays near one for
    explanations that resemble an edge detector.

    Args:
      explain: a function from variables to attributions of the same examples and targets, shape (N, …).
      variables: the variables of the trained model.
      fresh: variables of the same model as initialised with another seed.
      layers: names in `variables["params"]`, from the last layer to the first.
      is_cascading: whether a layer is randomised together with all layers before it in `layers`. Otherwise it
        is alone.

    Returns:
      By layer the mean over examples of Spearman's rank correlation of the sizes of the attributions.

    Raises:
      UserError: there is no such layer.
    """
    original = np.asarray(explain(variables))
    mixed = randomised_variables(variables, fresh, layers, is_cascading=is_cascading)
    return {
        layer: float(rank_correlations(original, explain(partly)).mean()) for layer, partly in mixed.items()
    }


def randomised_variables(
    variables: Variables, fresh: Variables, layers: Sequence[str], *, is_cascading: bool = True
) -> dict[str, Variables]:
    """Returns by layer the variables with random parameters; see `randomisation_correlations`."""
    params = variables["params"]
    if missing := [layer for layer in layers if layer not in params]:
        raise UserError(f"layers has {missing[0]!r}; choose among {', '.join(params)}")
    return {
        layer: {
            name: _mixed(part, fresh[name], layers[: index + 1] if is_cascading else [layer])
            for name, part in variables.items()
        }
        for index, layer in enumerate(layers)
    }


def rank_correlations(maps: Any, others: Any) -> np.ndarray:
    """Returns Spearman's rank correlation of the sizes of attributions, shape (N,); 0 for constant maps."""
    pairs = zip(*(np.abs(np.asarray(one)).reshape(len(one), -1) for one in (maps, others)), strict=True)
    return np.array(
        [
            float(stats.spearmanr(one, other).statistic) if np.ptp(one) > 0 and np.ptp(other) > 0 else 0.0
            for one, other in pairs
        ]
    )


def max_sensitivity(
    explain: Callable[[np.ndarray], Any],
    inputs: Any,
    *,
    radius: float = 0.02,
    num_samples: int = 10,
    seed: int = 0,
) -> np.ndarray:
    """Returns how far attributions change at most where the input hardly does (Yeh et al. 2019, def. 2.3).

    Args:
      explain: a function from inputs to attributions, with the targets held fixed.
      inputs: N examples, floats of shape (N, …).
      radius: largest change of an element.
      num_samples: number of changed copies of each example.
      seed: random seed of the changes, which are alike for all examples.

    Returns:
      The largest norm of the change as a share of the norm of the attributions, shape (N,).

    Raises:
      UserError: an argument is out of range.
    """
    check("radius", radius, POSITIVE)
    num_samples, inputs = check_count("num_samples", num_samples, STEPS), floats_of(inputs)
    rng, original = np.random.default_rng(seed), np.asarray(explain(inputs))
    worst = np.zeros(len(inputs))
    for _ in range(num_samples):
        change = rng.uniform(-radius, radius, inputs.shape[1:]).astype(inputs.dtype)
        worst = np.maximum(worst, _norms(np.asarray(explain(inputs + change[None])) - original))
    return worst / np.maximum(_norms(original), np.finfo(np.float32).tiny)


def infidelity(
    score: Score,
    inputs: Any,
    attributions: Any,
    targets: Any = None,
    *,
    noise: float = 0.1,
    num_samples: int = 100,
    seed: int = 0,
    batch_size: int | None = None,
) -> np.ndarray:
    """Returns the mean of (Σ I × attribution − (f(x) − f(x − I)))² over changes I (Yeh et al. 2019, eq. 1).

    It is meant for attributions in units of score by input, such as gradients. Divide others, such as
    integrated gradients, by input minus baseline first.

    Args:
      score: the score f, from inputs (B, …) to (B, C).
      inputs: N examples x, floats of shape (N, …).
      attributions: attributions of the shape of the inputs.
      targets: index of the score, one or (N,). `None` means the highest score of each example.
      noise: standard deviation of the changes, which are normally distributed.
      num_samples: number of changes, alike for all examples.
      seed: random seed of the changes.
      batch_size: number of examples in memory. `None` chooses it by the size of the activations.

    Returns:
      Infidelity of each example, shape (N,), float64.

    Raises:
      UserError: an argument is out of range or does not fit.
    """
    check("noise", noise, POSITIVE)
    num_samples = check_count("num_samples", num_samples, STEPS)
    score, inputs, attributions = partial_of(score), floats_of(inputs), np.asarray(attributions)
    if attributions.shape != inputs.shape:
        raise UserError(
            f"attributions has the shape {attributions.shape}; it must be that of inputs, {inputs.shape}"
        )
    size = batch_size_of(score, inputs, batch_size)
    targets_N = targets_of(score, inputs, targets, size)
    changes = noise * np.random.default_rng(seed).normal(size=(num_samples, *inputs.shape[1:]))
    found = np.zeros(len(inputs))
    for row, (example, target) in enumerate(zip(inputs, targets_N, strict=True)):
        copies = (example - np.concatenate([np.zeros_like(changes[:1]), changes])).astype(inputs.dtype)
        scores_S = scores_of(score, copies, size)[:, target].astype(np.float64)
        predicted_S = changes.reshape(num_samples, -1) @ attributions[row].ravel().astype(np.float64)
        found[row] = ((predicted_S - (scores_S[0] - scores_S[1:])) ** 2).mean()
    return found


def _curves(
    score: Score,
    inputs: Any,
    maps: Any,
    targets: Any,
    background: Any,
    num_steps: int,
    batch_size: int | None,
    *,
    is_deletion: bool,
) -> Curves:
    score, inputs, maps = partial_of(score), np.asarray(inputs), np.asarray(maps)
    num_steps = check_count("num_steps", num_steps, STEPS)
    if maps.shape != inputs.shape[: maps.ndim] or maps.ndim < 2:
        raise UserError(
            f"maps has the shape {maps.shape}; it must be that of the first axes of inputs, {inputs.shape}"
        )
    size = batch_size_of(score, inputs, batch_size)
    targets_N = targets_of(score, inputs, targets, size)
    backgrounds, places = backgrounds_of(background, inputs), np.arange(maps[0].size).reshape(maps.shape[1:])
    shares_T = np.linspace(0, 1, num_steps + 1)
    counts_T = np.round(shares_T * maps[0].size)
    scores = []
    for example, map_, target in zip(inputs, maps, targets_N, strict=True):
        ranks_P = np.argsort(np.argsort(-map_.ravel(), kind="stable"))
        is_changed = ranks_P[None] < counts_T[:, None]
        masks = ~is_changed if is_deletion else is_changed

        def keep(rows: np.ndarray, masks: np.ndarray = masks, example: np.ndarray = example) -> np.ndarray:
            return kept_places(masks[rows], places, example)

        scores.append(masked_scores(score, example, backgrounds, keep, num_steps + 1, size)[:, target])
    scores_NT = np.stack(scores)
    return Curves(shares_T, scores_NT, np.trapezoid(scores_NT, shares_T, axis=1))


def _mixed(part: Mapping[str, Any], fresh: Mapping[str, Any], layers: Sequence[str]) -> dict[str, Any]:
    """Returns a collection of variables with some layers replaced by fresh ones."""
    return {name: jax.tree.map(np.asarray, (fresh if name in layers else part)[name]) for name in part}


def _norms(attributions: np.ndarray) -> np.ndarray:
    return np.linalg.norm(attributions.reshape(len(attributions), -1), axis=1)
