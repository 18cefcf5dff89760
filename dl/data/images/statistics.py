"""Statistics of the pixels of a training split, for standardisation.

Shapes: B examples, H height, W width, C channels.
"""

import numpy as np

from dl.data.images.decoding import pixel_scale
from dl.types import Source

_CHUNK = 1024  # examples read at once


def channel_statistics(source: Source, name: str = "image") -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the mean and the standard deviation of each channel over all pixels of all images, in float64.

    Images of 8 or 16 bits are scaled to [0, 1] first, as for a model. `models.scaling.standardize` accepts
    the result. Use the training split: statistics of other splits would leak test data into the model.

    Args:
      source: source of images of shape (H, W, C), which is read in parts.
      name: name of the feature that holds the images.

    Raises:
      ValueError: the source has no examples.
    """
    if not len(source):
        raise ValueError("the source has no examples, so it has no statistics; give a split with examples")
    count, mean_C, spread_C = 0, np.zeros(1), np.zeros(1)
    for start in range(0, len(source), _CHUNK):
        image_BHWC = source[np.arange(start, min(start + _CHUNK, len(source)))][name]
        pixels = image_BHWC.reshape(-1, image_BHWC.shape[-1]).astype(np.float64)
        pixels /= pixel_scale(image_BHWC.dtype, name)
        # Chan, Golub & LeVeque 1983, eq. 2.1: a sum of squares minus a squared sum would lose precision.
        new, total = pixels.mean(0), count + len(pixels)
        spread_C = spread_C + pixels.var(0) * len(pixels) + (new - mean_C) ** 2 * count * len(pixels) / total
        mean_C, count = mean_C + (new - mean_C) * len(pixels) / total, total
    return tuple(mean_C.tolist()), tuple(np.sqrt(spread_C / count).tolist())
