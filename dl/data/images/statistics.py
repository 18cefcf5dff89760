"""What the pixels of a training split are like, to standardise by.

Shapes: B examples, H height, W width, C channels.
"""

import numpy as np

from dl.data.images.decoding import pixel_scale
from dl.types import Source

_CHUNK = 1024  # examples read at once


def channel_statistics(source: Source, name: str = "image") -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation of each channel over all pixels of all images, in float64.

    Bytes and 16 bits count in [0, 1], as a model sees them; `models.scaling.standardize` takes both. Give it
    the training split: statistics of the others would tell the model about examples that it is judged on.

    Args:
      source: images of shape (H, W, C), read in parts.
      name: the feature that holds them.

    Raises:
      ValueError: a source without examples.
    """
    if not len(source):
        raise ValueError("a source without examples has no statistics")
    count, mean_C, spread_C = 0, np.zeros(1), np.zeros(1)
    for start in range(0, len(source), _CHUNK):
        image_BHWC = source[np.arange(start, min(start + _CHUNK, len(source)))][name]
        pixels = image_BHWC.reshape(-1, image_BHWC.shape[-1]).astype(np.float64)
        pixels /= pixel_scale(image_BHWC.dtype, name)
        # Chan, Golub & LeVeque 1983, eq. 2.1: a sum of squares minus a squared sum would cancel.
        new, total = pixels.mean(0), count + len(pixels)
        spread_C = spread_C + pixels.var(0) * len(pixels) + (new - mean_C) ** 2 * count * len(pixels) / total
        mean_C, count = mean_C + (new - mean_C) * len(pixels) / total, total
    return tuple(mean_C.tolist()), tuple(np.sqrt(spread_C / count).tolist())
