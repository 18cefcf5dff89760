"""The features of an input that an explanation keeps or replaces: columns, superpixels or tokens.

*Segments* are an integer array over the first axes of an example. It says which feature each place belongs
to. Features are numbered from 0 to M - 1.

Shapes: H height, W width, C channels of an image, M features, S coalitions.
"""

from typing import Any

import numpy as np

from dl.errors import UserError
from dl.ranges import STEPS, check_count


def grid_superpixels(height: int, width: int, rows: int, columns: int) -> np.ndarray:
    """Returns segments that cut an image into rows × columns rectangles, shape (H, W).

    Raises:
      UserError: there are more rows or columns than pixels.
    """
    for name, parts, pixels in (("rows", rows, height), ("columns", columns, width)):
        if check_count(name, parts, STEPS) > pixels:
            raise UserError(f"{name}={parts} is more than the {pixels} pixels of the image; choose fewer")
    row_H, column_W = np.arange(height) * rows // height, np.arange(width) * columns // width
    return row_H[:, None] * columns + column_W[None]


def slic_superpixels(image_HWC: Any, num_superpixels: int, compactness: float = 10.0) -> np.ndarray:
    """Returns segments that follow the colours of an image, shape (H, W) (SLIC; Achanta et al. 2012).

    Args:
      image_HWC: image, shape (H, W, C).
      num_superpixels: about how many superpixels to make.
      compactness: how much nearness counts against colour.

    Raises:
      UserError: scikit-image is not installed.
    """
    try:
        from skimage.segmentation import slic
    except ImportError:
        raise UserError(
            "slic_superpixels needs scikit-image: pip install scikit-image; grid_superpixels does not need it"
        ) from None
    segments = slic(np.asarray(image_HWC), num_superpixels, compactness, start_label=0, channel_axis=-1)
    return np.unique(segments, return_inverse=True)[1].reshape(segments.shape)


def segments_of(segments: Any, example: np.ndarray) -> np.ndarray:
    """Returns segments that fit an example. `None` makes each place of the first axis a feature.

    Raises:
      UserError: they do not fit it, or the features are not numbered from zero without a gap.
    """
    if segments is None:
        if not example.ndim:
            raise UserError("an example has no axis; inputs must have the shape (N, features)")
        return np.arange(example.shape[0])
    given = np.asarray(segments)
    if given.dtype.kind not in "iu" or given.shape != example.shape[: given.ndim] or not given.ndim:
        raise UserError(
            f"segments has the shape {given.shape} and the dtype {given.dtype}; it must have whole "
            f"numbers over the first axes of an example of shape {example.shape}"
        )
    used = np.unique(given)
    if not np.array_equal(used, np.arange(len(used))):
        raise UserError(
            f"segments has the numbers {used.min()} to {used.max()} with {len(used)} features; number them "
            "from 0 without a gap"
        )
    return given


def kept_places(masks_SM: np.ndarray, segments: np.ndarray, example: np.ndarray) -> np.ndarray:
    """Returns which places each coalition keeps, bool, shape (S, …), to be broadcast to the example."""
    kept = masks_SM[:, segments]
    return kept.reshape(*kept.shape, *(1,) * (example.ndim - segments.ndim))
