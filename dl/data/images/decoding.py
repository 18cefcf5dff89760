"""Deterministic decoding of images inside the compiled step.

Only the model's input is decoded. Labels, masks and tokens are not changed, even if they are stored as bytes.

Shapes: B examples, H height, W width, C channels.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dl.errors import UserError
from dl.types import Batch, OfInput


def pixel_scale(dtype: np.dtype, name: str = "image") -> float:
    """Returns the value of white in images of a dtype: the largest number of 8 or 16 bits, or 1 for floats.

    Raises:
      UserError: the dtype is another whole number, for which the value of white is not known.
    """
    if dtype in (np.uint8, np.uint16):
        return float(np.iinfo(dtype).max)
    if jnp.issubdtype(dtype, jnp.integer):
        raise UserError(
            f"the images are stored as {dtype} (feature {name}): store uint8 or uint16, whose largest number "
            "is white, or floats in [0, 1]; for numbers that are not pixels set preprocess=None"
        )
    return 1.0


def is_image(name: str, leaf: jax.ShapeDtypeStruct | jax.Array) -> bool:
    """Returns whether an input, given by shape and dtype of ONE example, is an image.

    A feature with the name `image` is an image. So is an array of 8 or 16 bits with at least two axes, and
    any array with at least three axes. A row of bytes is not an image, because it may be tokens.
    """
    is_small = leaf.dtype in (np.uint8, np.uint16, np.bool_)
    return name == "image" or len(leaf.shape) >= (2 if is_small else 3)


def _to_unit_range(name: str, stored: jax.Array) -> jax.Array:
    one = jax.ShapeDtypeStruct(stored.shape[1:], stored.dtype)
    if jnp.issubdtype(stored.dtype, jnp.inexact) or not is_image(name, one):
        return stored
    scale = pixel_scale(stored.dtype, name)
    values = jnp.asarray(stored, jnp.float32)
    return values if scale == 1.0 else values / scale


to_unit_range = OfInput(_to_unit_range)
"""Returns the batch with the model's input as float32 in [0, 1], if it is an image (see `is_image`).

Numbers of 8 bits are divided by 255 and numbers of 16 bits by 65,535. Floats and other features are not
changed. Images of other dtypes raise UserError.
"""


def unit_range(*names: str) -> Callable[[Batch], Batch]:
    """Returns a preprocessing that decodes several images, such as an autoencoder's input and target.

    Args:
      names: names of features whose values are pixels, of any shape.
    """

    def preprocess(batch: Batch) -> Batch:
        return {
            **batch,
            **{
                name: jnp.asarray(batch[name], jnp.float32) / pixel_scale(batch[name].dtype, name)
                for name in names
            },
        }

    return preprocess


def resized(height: int, width: int) -> OfInput:
    """Returns a preprocessing that applies `to_unit_range` and resizes the input bilinearly."""

    def convert(name: str, stored_BHWC: jax.Array) -> jax.Array:
        images_BHWC = _to_unit_range(name, stored_BHWC)
        shape = (images_BHWC.shape[0], height, width, images_BHWC.shape[-1])
        if images_BHWC.shape == shape:
            return images_BHWC
        return jax.image.resize(images_BHWC, shape, "bilinear")

    return OfInput(convert)
