"""Trivial explanations, which do not know the model and which every other one must beat.

Shapes: N examples, H height, W width, C channels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage


def random_maps(shape: Sequence[int], seed: int = 0) -> np.ndarray:
    """Returns maps of uniform noise, which point nowhere."""
    return np.random.default_rng(seed).random(shape, np.float32)


def sobel_maps(images: Any) -> np.ndarray:
    """Returns the edges of images, shape (N, H, W): a trivial explanation that looks good.

    It is the size of the gradient by Sobel's filter of the mean over channels.

    Args:
      images: images, shape (N, H, W, C).
    """
    grey_NHW = np.asarray(images, np.float32).mean(-1)
    return np.hypot(ndimage.sobel(grey_NHW, 1), ndimage.sobel(grey_NHW, 2))
