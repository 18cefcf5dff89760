"""Keras' `ImageDataGenerator` as one augmentation on the device.

Shapes: H height, W width, C channels.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dl.data.images.affine import FillMode, keras_affine, warp
from dl.data.images.augment import (
    adjust_brightness,
    compose,
    of_image,
    random_horizontal_flip,
    random_vertical_flip,
)
from dl.types import Augment, Key

ShiftRange = float | int | Sequence[float]


def image_data_generator(
    *,
    rotation_range: float = 0.0,
    width_shift_range: ShiftRange = 0.0,
    height_shift_range: ShiftRange = 0.0,
    brightness_range: tuple[float, float] | None = None,
    shear_range: float = 0.0,
    zoom_range: float | tuple[float, float] = 0.0,
    fill_mode: FillMode = "nearest",
    cval: float = 0.0,
    horizontal_flip: bool = False,
    vertical_flip: bool = False,
    rescale: float | None = None,
) -> Augment:
    """Returns the augmentation that Keras' `ImageDataGenerator` documents, by its names and defaults.

    One resampling by rotation · shift · shear · zoom, then flips with probability ½ each, then brightness.

    As documented, which Keras 3.15 departs from: `width_shift_range` moves columns (there it moves rows), the
    centre of an image that is not square is its centre, and brightness multiplies without stretching the
    image's range first. At the border `constant` and `wrap` interpolate (see `affine.warp`).

    Args:
      rotation_range: degrees; uniform in ± this.
      width_shift_range: a float is uniform in ± this, a fraction of the width below 1 and pixels from 1 on;
        an int n is a whole number of pixels below n, and a sequence lists the choices (fractions if all
        are below 1), both with a random sign.
      height_shift_range: the same of the height.
      brightness_range: bounds of the factor.
      shear_range: DEGREES; uniform in ± this. The 0.2 of many tutorials is a fifth of a degree.
      zoom_range: z, for factors uniform in 1 ± z, or their bounds; one factor for each axis; above 1 the
        picture shrinks.
      fill_mode: what lies outside the image.
      cval: the constant of `constant`, in the units of the image, [0, 1].
      horizontal_flip: whether left and right may be swapped.
      vertical_flip: whether top and bottom may be swapped.
      rescale: None or 1/255: images arrive here in [0, 1] already.

    Raises:
      ValueError: another `rescale`, which evaluation would miss.
    """
    if rescale is not None and not np.isclose(rescale, 1 / 255):
        raise ValueError(
            f"rescale={rescale} would change training and not evaluation; images are in [0, 1] here, any "
            "other scaling belongs in Experiment.preprocess"
        )
    low, high = (1 - zoom_range, 1 + zoom_range) if isinstance(zoom_range, float | int) else zoom_range

    def move(key: Key, image_HWC: jax.Array) -> jax.Array:
        height, width, _ = image_HWC.shape
        keys = jax.random.split(key, 5)
        angle = jax.random.uniform(keys[0], minval=-1.0, maxval=1.0) * rotation_range
        shear = jax.random.uniform(keys[1], minval=-1.0, maxval=1.0) * shear_range
        zoom = jax.random.uniform(keys[2], (2,), minval=low, maxval=high)
        shift = jnp.stack(
            [_draw_shift(keys[3], height_shift_range, height), _draw_shift(keys[4], width_shift_range, width)]
        )
        return warp(image_HWC, *keras_affine(angle, shift, shear, zoom), fill_mode, cval)

    parts = []
    if (
        rotation_range
        or np.any(width_shift_range)
        or np.any(height_shift_range)
        or shear_range
        or low != high
    ):
        parts.append(of_image(move))
    if horizontal_flip:
        parts.append(random_horizontal_flip())
    if vertical_flip:
        parts.append(random_vertical_flip())
    if brightness_range is not None:
        darkest, brightest = brightness_range
        parts.append(
            of_image(
                lambda key, image: adjust_brightness(
                    image, jax.random.uniform(key, minval=darkest, maxval=brightest)
                )
            )
        )
    return compose(*parts)


def _draw_shift(key: Key, shift_range: ShiftRange, size: int) -> jax.Array:
    """Returns pixels along an axis of `size` pixels."""
    unit = size if np.max(shift_range) < 1 else 1
    if isinstance(shift_range, float):
        return jax.random.uniform(key, minval=-1.0, maxval=1.0) * shift_range * unit
    choices = np.arange(max(shift_range, 1)) if isinstance(shift_range, int) else np.asarray(shift_range)
    choice_key, sign_key = jax.random.split(key)
    chosen = jax.random.choice(choice_key, jnp.asarray(choices, jnp.float32))
    return chosen * unit * jax.random.rademacher(sign_key, (), jnp.float32)
