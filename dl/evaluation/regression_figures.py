"""Metrics of a regression from its stored predictions, with intervals over the examples.

Shapes: N examples, D outputs.
"""

import numpy as np
from numpy.typing import ArrayLike

from dl.errors import UserError
from dl.evaluation.figure import Figure, no_interval, positive_interval
from dl.evaluation.spread import Spread

_METHOD = "delta method over the examples"


def regression_figures(outputs: ArrayLike, targets: ArrayLike) -> dict[str, Figure]:
    """Returns `mean_absolute_error`, `root_mean_squared_error` and `r_squared`, each over all outputs.

    They equal `mean_absolute_error` and `root_mean_squared_error` of scikit-learn for the flattened arrays,
    and `r2_score` (the uniform average over the outputs): R² = 1 - Σ (output - target)² / Σ (target - mean)².
    It is NaN if a target is constant or there are fewer than two examples.

    The mean absolute error has the interval of a mean. The other intervals are computed for the logarithms of
    the error and of 1 - R², so that the bounds are > 0 and < 1; there is no interval if these are 0. With
    heavy tails their coverage is 91 % for 50 examples and 94 % for 200 examples.

    Args:
      outputs: the outputs of the model, shape (N, D) or (N,).
      targets: the targets, of the same shape.

    Raises:
      UserError: the shapes differ, or there are no examples.
    """
    output_ND, target_ND = (np.asarray(x, np.float64) for x in (outputs, targets))
    if output_ND.shape != target_ND.shape or not output_ND.size:
        raise UserError(
            f"outputs have the shape {output_ND.shape} and targets {target_ND.shape}; expected equal shapes, "
            "(examples, outputs)"
        )
    output_ND, target_ND = (x.reshape(len(x), -1) for x in (output_ND, target_ND))
    error_ND = output_ND - target_ND
    absolute_N, squared_N = np.abs(error_ND).mean(1), np.square(error_ND).mean(1)
    return {
        "mean_absolute_error": _mean(absolute_N),
        "root_mean_squared_error": _root(squared_N),
        "r_squared": _r_squared(error_ND, target_ND),
    }


def _mean(values_N: np.ndarray) -> Figure:
    interval = Spread.of(values_N, np.ones(len(values_N))).interval()
    if interval is None:
        return no_interval(values_N.mean(), "min")
    (value, low, high), method = interval
    return Figure(value, low, high, "min", method)


def _root(squared_N: np.ndarray) -> Figure:
    mean = squared_N.mean()
    value = float(np.sqrt(mean))
    if not np.isfinite(value) or value == 0 or len(squared_N) < 2:
        return no_interval(value, "min")
    return Figure(value, *positive_interval(value, (squared_N / mean - 1) / 2), "min", _METHOD)


def _r_squared(error_ND: np.ndarray, target_ND: np.ndarray) -> Figure:
    squared_ND, deviation_ND = np.square(error_ND), np.square(target_ND - target_ND.mean(0))
    variance_D = deviation_ND.mean(0)
    if len(error_ND) < 2 or (variance_D == 0).any():
        return no_interval(float("nan"), "max")
    unexplained_D = squared_ND.mean(0) / variance_D
    unexplained = float(unexplained_D.mean())
    if not np.isfinite(unexplained) or unexplained == 0:
        return no_interval(1 - unexplained, "max")
    # Example i has the influence a_i / mean(a) - b_i / mean(b) on the logarithm of Σ a / Σ b.
    influence_ND = squared_ND / variance_D - unexplained_D * deviation_ND / variance_D
    low, high = positive_interval(unexplained, influence_ND.mean(1) / unexplained)
    return Figure(1 - unexplained, 1 - high, 1 - low, "max", _METHOD)
