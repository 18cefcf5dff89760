"""Permutation importance: how much a metric falls where a feature is shuffled (Breiman 2001, section 10).

Shapes: N examples, M features, R repetitions.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from dl.analysis.attributions.features import kept_places, segments_of
from dl.analysis.attributions.scoring import Score, batch_size_of, num_scores, partial_of, scores_of
from dl.errors import UserError
from dl.ranges import STEPS, check_count


def permutation_importance(
    score: Score,
    inputs: Any,
    labels: Any,
    metric: Callable[[np.ndarray, np.ndarray], float],
    *,
    segments: Any = None,
    num_repeats: int = 10,
    seed: int = 0,
    batch_size: int | None = None,
) -> np.ndarray:
    """Returns how far a metric falls where a feature is exchanged between the examples.

    It explains the model on a data set, not one prediction. Of two features that say the same, both may look
    unimportant.

    Args:
      score: the score, from inputs (B, …) to (B, C).
      inputs: N examples of shape (N, …).
      labels: N labels.
      metric: a function of scores (N, C) and labels (N,) that is higher for better predictions.
      segments: which feature each place of an example is, whole numbers over its first axes. `None` makes
        each place of the first axis a feature, such as a column of a table.
      num_repeats: number of orders for each feature, R.
      seed: random seed of the orders.
      batch_size: number of examples in memory. `None` chooses it by the size of the activations.

    Returns:
      Falls of the metric, shape (M, R): take mean and standard deviation over R.

    Raises:
      UserError: there is not one label for each example, or an argument does not fit.
    """
    score, inputs, labels = partial_of(score), np.asarray(inputs), np.asarray(labels)
    num_repeats = check_count("num_repeats", num_repeats, STEPS)
    if len(labels) != len(inputs):
        raise UserError(f"there are {len(labels)} labels for {len(inputs)} inputs; give one for each")
    num_scores(score, inputs)
    size, feature_of_place = batch_size_of(score, inputs, batch_size), segments_of(segments, inputs[0])
    whole = float(metric(scores_of(score, inputs, size), labels))
    falls = np.zeros((int(feature_of_place.max()) + 1, num_repeats))
    for feature, repeat in np.ndindex(falls.shape):
        # Each order follows from its own place, so that more repetitions keep those that were there.
        order = np.random.default_rng((seed, feature, repeat)).permutation(len(inputs))
        is_kept = np.arange(len(falls))[None] != feature
        shuffled = np.where(kept_places(is_kept, feature_of_place, inputs[0]), inputs, inputs[order])
        falls[feature, repeat] = whole - float(metric(scores_of(score, shuffled, size), labels))
    return falls
