"""Geometry of images on the device: affine maps and resampling.

Shapes: H height, W width, C channels.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

# Accelerators multiply matrices in fewer bits by default: at 224 pixels that moves places visibly.
_matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)

FillMode = Literal["constant", "nearest", "reflect", "wrap"]
"""What lies outside an image, as SciPy names it: a constant, the pixel at the edge, the mirror image with the
edge pixel repeated (d c b a | a b c d | d c b a), or the image again."""


def affine_matrix(angle: jax.Array, scale: jax.Array, shear: jax.Array) -> jax.Array:
    """Returns the map from output (row, column) to input, both from the centre, shape (2, 2).

    The picture turns counterclockwise by `angle` (radians) and shrinks where `scale` is above 1.
    """
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    turn = jnp.array([[cos, sin], [-sin, cos]])
    skew = jnp.array([[1.0, 0.0], [shear, 1.0]])
    return scale * _matmul(turn, skew)


def keras_affine(
    angle: jax.Array, shift: jax.Array, shear: jax.Array, zoom: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the matrix and the shift of Keras' `apply_affine_transform`, for `warp`.

    Rotation · shift · shear · zoom, in that order, as maps from output to input.

    Args:
      angle: in DEGREES; above 0 the picture turns counterclockwise.
      shift: rows and columns; above 0 the picture moves up and left, turned by `angle`.
      shear: in DEGREES.
      zoom: of rows and columns; above 1 the picture shrinks.
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
    """Returns the image resampled at `matrix @ place + shift`, places counted from the centre.

    Values between pixels are interpolated bilinearly, at the border with what lies outside: SciPy's
    `grid-constant`, `nearest`, `reflect` and `grid-wrap`.

    Args:
      image_HWC: floats.
      matrix: shape (2, 2), from output (row, column) to input.
      shift: rows and columns.
      fill_mode: what lies outside.
      cval: the constant of `constant`.
    """
    height, width, _ = image_HWC.shape
    centre = (jnp.array([height, width]) - 1) / 2
    places = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"))
    from_centre = places.reshape(2, -1) - centre[:, None]
    sources = _matmul(matrix, from_centre) + (centre + shift)[:, None]
    rows, columns = sources.reshape(2, height, width)
    return jax.vmap(
        lambda channel_HW: map_coordinates(channel_HW, [rows, columns], order=1, mode=fill_mode, cval=cval),
        in_axes=-1,
        out_axes=-1,
    )(image_HWC)
