"""Deterministic decoding of images inside the compiled step.

What a pixel is follows from what a feature is for, not from its type: only the model's input is decoded.
Labels, masks and tokens stay what they are, also where they are stored as bytes.

Shapes: B examples, H height, W width, C channels.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dl.errors import UserError
from dl.types import Batch, OfInput


def pixel_scale(dtype: np.dtype, name: str = "image") -> float:
    """Returns what stands for 1.0 in images of a type: the largest number of 8 or 16 bits, 1 for floats.

    Raises:
      UserError: another whole number, of which nobody knows what is white.
    """
    if dtype in (np.uint8, np.uint16):
        return float(np.iinfo(dtype).max)
    if jnp.issubdtype(dtype, jnp.integer):
        raise UserError(
            f"the images are stored as {dtype} (feature {name}): store uint8 or uint16, whose largest number "
            "is white, or floats in [0, 1]; numbers that are not pixels need preprocess=None"
        )
    return 1.0


def is_image(name: str, leaf: jax.ShapeDtypeStruct | jax.Array) -> bool:
    """Whether an input, by shape and dtype of ONE example, is an image rather than a row of numbers.

    What is called `image` is one; otherwise bytes and 16 bits with a height and a width, and whatever has
    channels too. A row of bytes may as well be tokens.
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
"""Returns the batch with the model's input, where it is an image, as float32 in [0, 1].

Bytes are divided by 255, 16 bits by 65,535; floats stay as they are, and so does what is no image: see
`is_image`. Other types are refused.
"""


def unit_range(*names: str) -> Callable[[Batch], Batch]:
    """Returns a preprocessing that decodes several images, such as an autoencoder's input and target.

    Args:
      names: of features whose values are pixels, whatever their shape.
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
    """Returns a preprocessing: `to_unit_range`, then the input at this size by bilinear interpolation."""

    def convert(name: str, stored_BHWC: jax.Array) -> jax.Array:
        images_BHWC = _to_unit_range(name, stored_BHWC)
        shape = (images_BHWC.shape[0], height, width, images_BHWC.shape[-1])
        if images_BHWC.shape == shape:
            return images_BHWC
        return jax.image.resize(images_BHWC, shape, "bilinear")

    return OfInput(convert)
