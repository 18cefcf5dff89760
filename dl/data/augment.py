"""Random augmentation on the device: functions of a key and ONE example, mapped over the batch in the step.

Shapes: H height, W width, C channels.
"""

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from dl.step import Augment
from dl.types import Batch, Key


def random_affine(
    *, rotate: float = 0.0, zoom: float = 0.0, shear: float = 0.0, shift: float = 0.0
) -> Augment:
    """Returns an augmentation that warps `image` by a random affine map about its centre.

    Each number is the bound of a uniform draw between minus and plus itself. Values between pixels are
    interpolated bilinearly; outside the image is 0.

    Args:
      rotate: angle in radians.
      zoom: natural logarithm of the scale.
      shear: columns moved per row.
      shift: pixels along each axis, whole or not.
    """

    def augment(key: Key, example: Batch) -> Batch:
        draws = jax.random.uniform(key, (5,), minval=-1.0, maxval=1.0)
        angle, log_scale, slant = draws[0] * rotate, draws[1] * zoom, draws[2] * shear
        matrix = affine_matrix(angle, jnp.exp(log_scale), slant)
        return {**example, "image": warp(example["image"], matrix, draws[3:] * shift)}

    return augment


def affine_matrix(angle: jax.Array, scale: jax.Array, shear: jax.Array) -> jax.Array:
    """Returns the map from output (row, column) to input, both from the centre, shape (2, 2).

    The picture turns counterclockwise by `angle` (radians) and shrinks where `scale` is above 1.
    """
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    turn = jnp.array([[cos, sin], [-sin, cos]])
    skew = jnp.array([[1.0, 0.0], [shear, 1.0]])
    return scale * turn @ skew


def warp(image_HWC: jax.Array, matrix: jax.Array, shift: jax.Array) -> jax.Array:
    """Returns the image resampled at `matrix @ place + shift`, places counted from the centre."""
    height, width, _ = image_HWC.shape
    centre = (jnp.array([height, width]) - 1) / 2
    places = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"))
    from_centre = places.reshape(2, -1) - centre[:, None]
    rows, columns = (matrix @ from_centre + (centre + shift)[:, None]).reshape(2, height, width)
    return jax.vmap(
        lambda channel_HW: map_coordinates(channel_HW, [rows, columns], order=1), in_axes=-1, out_axes=-1
    )(image_HWC)
