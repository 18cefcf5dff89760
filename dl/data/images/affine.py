"""Geometry of images on the device: affine maps and resampling.

Shapes: H height, W width, C channels.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

# By default accelerators multiply matrices with a low precision, which shifts pixels visibly at 224 pixels.
_matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)

FillMode = Literal["constant", "nearest", "reflect", "wrap"]
"""The values outside an image, named as in SciPy: a constant, the pixel at the edge, the mirror image with
the edge pixel repeated (d c b a | a b c d | d c b a), or the image again."""


def affine_matrix(angle: jax.Array, scale: jax.Array, shear: jax.Array) -> jax.Array:
    """Returns the matrix of the map from output to input (row, column), relative to the centre, shape (2, 2).

    The image is rotated counterclockwise by `angle`, in radians. It shrinks if `scale` is above 1.
    """
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    turn = jnp.array([[cos, sin], [-sin, cos]])
    skew = jnp.array([[1.0, 0.0], [shear, 1.0]])
    return scale * _matmul(turn, skew)


def keras_affine(
    angle: jax.Array, shift: jax.Array, shear: jax.Array, zoom: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the matrix and the shift of Keras' `apply_affine_transform`, for `warp`.

    The map from output to input is the product rotation · shift · shear · zoom.

    Args:
      angle: angle in DEGREES. A positive angle rotates the image counterclockwise.
      shift: number of rows and of columns. Positive values move the image up and left, rotated by `angle`.
      shear: shear in DEGREES.
      zoom: factors of rows and columns. Factors above 1 shrink the image.
    """
    angle, shear = jnp.deg2rad(angle), jnp.deg2rad(shear)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    turn = jnp.array([[cos, sin], [-sin, cos]])
    skew = jnp.array([[jnp.cos(shear), 0.0], [-jnp.sin(shear), 1.0]])
    return _matmul(turn, skew) * zoom[None], _matmul(turn, shift)


def warp(
    image_HWC: jax.Array,
    matrix: jax.Array,
    shift: jax.Array,
    fill_mode: FillMode = "constant",
    cval: float = 0.0,
) -> jax.Array:
    """Returns the image resampled at `matrix @ position + shift`, with positions relative to the centre.

    Values between pixels are interpolated bilinearly. At the border the values outside the image are used
    too: SciPy's modes `grid-constant`, `nearest`, `reflect` and `grid-wrap`.

    Args:
      image_HWC: image of floats.
      matrix: matrix from output (row, column) to input, shape (2, 2).
      shift: number of rows and of columns, whole or not.
      fill_mode: values outside the image.
      cval: value outside the image for `fill_mode="constant"`.
    """
    height, width, _ = image_HWC.shape
    centre = (jnp.array([height, width]) - 1) / 2
    positions = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"))
    from_centre = positions.reshape(2, -1) - centre[:, None]
    sources = _matmul(matrix, from_centre) + (centre + shift)[:, None]
    rows, columns = sources.reshape(2, height, width)
    return jax.vmap(
        lambda channel_HW: map_coordinates(channel_HW, [rows, columns], order=1, mode=fill_mode, cval=cval),
        in_axes=-1,
        out_axes=-1,
    )(image_HWC)
