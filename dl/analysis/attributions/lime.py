"""LIME: a linear model that is fitted to a score around one input (Ribeiro et al. 2016, section 3).

Shapes: N examples, S samples around one example, M features.
"""

from typing import Any, NamedTuple

import numpy as np

from dl.analysis.attributions.features import kept_places, segments_of
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
from dl.ranges import NON_NEGATIVE, POSITIVE, STEPS, check, check_count


class LocalModels(NamedTuple):
    """Linear models around examples.

    Attributes:
      weights: weight of each feature, shape (N, M), float64.
      intercepts: score of the linear model without any feature, shape (N,).
      fidelity: weighted R² of the linear model on the samples it was fitted to, shape (N,). Where it is low,
        the weights do not explain the score.
    """

    weights: np.ndarray
    intercepts: np.ndarray
    fidelity: np.ndarray


def lime(
    score: Score,
    inputs: Any,
    targets: Any = None,
    *,
    background: Any,
    segments: Any = None,
    num_samples: int = 1000,
    kernel_width: float = 0.25,
    ridge: float = 1e-3,
    seed: int = 0,
    batch_size: int | None = None,
) -> LocalModels:
    """Returns linear models of a score of present and absent features, such as superpixels or tokens.

    Each feature is absent in half of the samples, alike for all examples. A sample counts by the kernel
    exp(−d² / width²), d its cosine distance to the whole input (section 3.3).

    Args:
      score: the score, from inputs (B, …) to (B, C).
      inputs: N examples of shape (N, …), such as images or tokens.
      targets: index of the score to explain, one or (N,). `None` means the highest score of each example.
      background: what absent features are replaced by: a number such as the token of the mask, an example, or
        several examples to take the mean over.
      segments: which feature each place of an example is, whole numbers over its first axes; see
        `features.grid_superpixels`. `None` makes each place of the first axis a feature, such as a token.
      num_samples: number of samples, one of which is the input.
      kernel_width: width of the kernel.
      ridge: penalty of the squared weights, as a share of the samples' total weight.
      seed: random seed of the samples.
      batch_size: number of copies in memory. `None` chooses it by the size of the activations.

    Raises:
      UserError: an argument is out of range or does not fit.
    """
    num_samples = _check(num_samples, kernel_width, ridge)
    score, inputs = partial_of(score), np.asarray(inputs)
    size = batch_size_of(score, inputs, batch_size)
    targets_N = targets_of(score, inputs, targets, size)
    backgrounds, feature_of_place = backgrounds_of(background, inputs), segments_of(segments, inputs[0])
    num_features = int(feature_of_place.max()) + 1
    masks_SM = np.random.default_rng(seed).random((num_samples, num_features)) < 0.5
    masks_SM[0] = True
    distances_S = 1 - np.sqrt(masks_SM.mean(1))
    weights_S = np.exp(-((distances_S / kernel_width) ** 2))
    found = []
    for example, target in zip(inputs, targets_N, strict=True):

        def keep(rows: np.ndarray, example: np.ndarray = example) -> np.ndarray:
            return kept_places(masks_SM[rows], feature_of_place, example)

        scores_S = masked_scores(score, example, backgrounds, keep, num_samples, size)[:, target]
        found.append(_fit(masks_SM.astype(float), scores_S, weights_S, ridge))
    return LocalModels(*(np.stack(part) for part in zip(*found, strict=True)))


def tabular_lime(
    score: Score,
    inputs: Any,
    targets: Any = None,
    *,
    scale: Any,
    num_samples: int = 1000,
    kernel_width: float | None = None,
    ridge: float = 1e-3,
    seed: int = 0,
    batch_size: int | None = None,
) -> LocalModels:
    """Returns linear models of a score of numeric features, around rows of a table.

    Samples are drawn from a normal distribution around each row, with the same noise for all rows. A sample
    counts by the kernel exp(−d² / width²), d its distance to the row in units of the scale.

    Args:
      score: the score, from inputs (B, M) to (B, C).
      inputs: N rows, floats of shape (N, M).
      targets: index of the score to explain, one or (N,). `None` means the highest score of each row.
      scale: standard deviation of each feature, such as in the training split, shape (M,), or one for all.
      num_samples: number of samples.
      kernel_width: width of the kernel. `None` means 0.75 √M, as in the authors' code.
      ridge: penalty of the squared weights, as a share of the samples' total weight.
      seed: random seed of the samples.
      batch_size: number of samples in memory. `None` chooses it by the size of the activations.

    Returns:
      Weights in units of score by `scale` of the feature. Divide them by `scale` for those by unit. The
      intercept is the score of the linear model at the row itself.

    Raises:
      UserError: an argument is out of range or does not fit.
    """
    score, inputs = partial_of(score), floats_of(inputs)
    if inputs.ndim != 2:
        raise UserError(
            f"inputs has the shape {inputs.shape}; tabular_lime needs rows of a table, (N, features)"
        )
    width = 0.75 * inputs.shape[1] ** 0.5 if kernel_width is None else kernel_width
    num_samples = _check(num_samples, width, ridge)
    scales = np.asarray(scale, np.float64)
    if scales.shape not in ((), inputs.shape[1:]) or not (scales > 0).all():
        raise UserError(f"scale must be positive, one for all or one for each of {inputs.shape[1]} features")
    size = batch_size_of(score, inputs, batch_size)
    targets_N = targets_of(score, inputs, targets, size)
    noise_SM = np.random.default_rng(seed).normal(size=(num_samples, inputs.shape[1]))
    weights_S = np.exp(-(noise_SM**2).sum(1) / width**2)
    found = []
    for row, target in zip(inputs, targets_N, strict=True):
        scores_S = scores_of(score, (row + scales * noise_SM).astype(inputs.dtype), size)[:, target]
        found.append(_fit(noise_SM, scores_S.astype(np.float64), weights_S, ridge))
    return LocalModels(*(np.stack(part) for part in zip(*found, strict=True)))


def _check(num_samples: int, kernel_width: float, ridge: float) -> int:
    check("kernel_width", kernel_width, POSITIVE)
    check("ridge", ridge, NON_NEGATIVE)
    return check_count("num_samples", num_samples, STEPS)


def _fit(
    features_SM: np.ndarray, scores_S: np.ndarray, weights_S: np.ndarray, ridge: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns weights, intercept and weighted R² of a weighted ridge regression."""
    from sklearn.linear_model import Ridge  # takes a second to import

    model = Ridge(alpha=ridge * weights_S.sum(), solver="cholesky")
    model.fit(features_SM, scores_S, sample_weight=weights_S)
    fidelity = model.score(features_SM, scores_S, sample_weight=weights_S) if len(scores_S) > 1 else np.nan
    return model.coef_, np.asarray(model.intercept_), np.asarray(fidelity)
