"""Images on a larger canvas with clutter: fragments of other images of the set lie around.

The place of the image is known, so that explanations can be checked (the pointing game). Source: cluttered
MNIST (Mnih et al. 2014, section 4.2).

Shapes: N images, H height, W width, C channels, S side of the canvas.
"""

from typing import NamedTuple

import numpy as np

from dl.errors import UserError
from dl.ranges import Range, check_count


class Cluttered(NamedTuple):
    """Images with clutter.

    Attributes:
      images: uint8 (N, S, S, C).
      regions: where the pixels of the image are brighter than a quarter of the range, bool (N, S, S).
    """

    images: np.ndarray
    regions: np.ndarray


def add_clutter(
    images: np.ndarray, side: int = 60, num_fragments: int = 8, fragment: int = 8, seed: int = 0
) -> Cluttered:
    """Puts each image at a random place on a black canvas with fragments of other images.

    Fragments are squares cut from random places of random images. Where they meet the image, the brighter
    pixel counts.

    Args:
      images: uint8 (N, H, W, C), bright on black.
      side: S, in pixels.
      num_fragments: number of fragments on each canvas.
      fragment: side of a fragment, in pixels.
      seed: random seed of places and fragments.

    Raises:
      UserError: the canvas is smaller than an image, or a fragment larger.
    """
    count, height, width, channels = images.shape
    check_count("side", side, Range(max(height, width)))
    check_count("fragment", fragment, Range(1, min(height, width)))
    check_count("num_fragments", num_fragments, Range(0))
    if images.dtype != np.uint8:
        raise UserError(f"images has the dtype {images.dtype}; it must be uint8")
    rng = np.random.default_rng(seed)
    canvases = np.zeros((count, side, side, channels), np.uint8)
    regions = np.zeros((count, side, side), bool)
    for canvas, region, image in zip(canvases, regions, images, strict=True):
        for _ in range(num_fragments):
            other = images[rng.integers(count)]
            top, left = rng.integers(height - fragment + 1), rng.integers(width - fragment + 1)
            row, column = rng.integers(side - fragment + 1, size=2)
            place = canvas[row : row + fragment, column : column + fragment]
            np.maximum(place, other[top : top + fragment, left : left + fragment], out=place)
        row, column = rng.integers(side - height + 1), rng.integers(side - width + 1)
        place = canvas[row : row + height, column : column + width]
        np.maximum(place, image, out=place)
        region[row : row + height, column : column + width] = image.max(-1) > 63
    return Cluttered(canvases, regions)
