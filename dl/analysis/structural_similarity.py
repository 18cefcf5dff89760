"""The structural similarity of two maps (SSIM; Wang et al. 2004).

Shapes: N examples, H height, W width.
"""

from typing import Any

import numpy as np
from scipy import ndimage

from dl.errors import UserError

WINDOW = 7  # pixels along each side
_K1, _K2 = 0.01, 0.03  # constants of the paper, section III.B


def structural_similarities(maps: Any, others: Any) -> np.ndarray:
    """Returns SSIM of pairs of maps, shape (N,): 1 for equal maps, near 0 for unrelated ones.

    Each map is first scaled to [0, 1]. The mean is taken over all windows of 7 by 7 pixels that lie inside of
    the map, with equal weights and unbiased variances (eq. 13 and 17).

    Args:
      maps: maps, shape (N, H, W).
      others: maps to compare with, of the same shape.

    Raises:
      UserError: the shapes differ, or a map is smaller than the window.
    """
    maps, others = np.asarray(maps, np.float64), np.asarray(others, np.float64)
    if maps.shape != others.shape or maps.ndim != 3 or min(maps.shape[1:]) < WINDOW:
        raise UserError(
            f"maps has the shape {maps.shape} and others {others.shape}; both must have the same shape "
            f"(N, H, W), with at least {WINDOW} by {WINDOW} pixels"
        )
    x, y = _unit(maps), _unit(others)
    mean_x, mean_y = _window_means(x), _window_means(y)
    unbiased = WINDOW**2 / (WINDOW**2 - 1)
    variance_x = unbiased * (_window_means(x * x) - mean_x**2)
    variance_y = unbiased * (_window_means(y * y) - mean_y**2)
    covariance = unbiased * (_window_means(x * y) - mean_x * mean_y)
    c1, c2 = _K1**2, _K2**2
    similar = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similar /= (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    border = WINDOW // 2
    return similar[:, border:-border, border:-border].mean((1, 2))


def _unit(maps: np.ndarray) -> np.ndarray:
    low = maps.min((1, 2), keepdims=True)
    spread = maps.max((1, 2), keepdims=True) - low
    return (maps - low) / np.where(spread > 0, spread, 1.0)


def _window_means(maps: np.ndarray) -> np.ndarray:
    return ndimage.uniform_filter(maps, (0, WINDOW, WINDOW))
