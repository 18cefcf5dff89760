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
    """Returns the augmentation that Keras documents for `ImageDataGenerator`, with its names and defaults.

    It resamples the image once by rotation · shift · shear · zoom. Then it flips each axis with probability
    ½, and then changes the brightness.

    It follows the documentation of Keras where Keras 3.15 differs from it. `width_shift_range` moves columns
    (Keras moves rows). The centre of rotation is also right for images that are not square. Brightness is a
    factor, without a rescaling of the image's range before it. At the border `constant` and `wrap`
    interpolate (see `affine.warp`).

    Args:
      rotation_range: largest angle, in degrees. Angles are uniform in ± this.
      width_shift_range: largest horizontal shift. A float means a uniform shift in ± this, as a fraction of
        the width if it is below 1 and in pixels otherwise. An int n means a whole number of pixels below n. A
        sequence lists the possible shifts (fractions if all are below 1). The last two get a random sign.
      height_shift_range: largest vertical shift, in the same forms.
      brightness_range: bounds of the brightness factor.
      shear_range: largest shear, in DEGREES. Shears are uniform in ± this. Note that 0.2, which many
        tutorials use, is a fifth of a degree.
      zoom_range: bounds of the zoom factors, or z for the bounds 1 ± z. Each axis has one factor. Factors
        above 1 shrink the image.
      fill_mode: values outside the image.
      cval: value outside the image for `fill_mode="constant"`, in [0, 1].
      horizontal_flip: whether left and right may be swapped.
      vertical_flip: whether top and bottom may be swapped.
      rescale: None or 1/255. Both have no effect, because images are already in [0, 1].

    Raises:
      ValueError: `rescale` has another value, which would not apply in evaluation.
    """
    if rescale is not None and not np.isclose(rescale, 1 / 255):
        raise ValueError(
            f"rescale={rescale} would change training but not evaluation; images are in [0, 1] here: put any "
            "other scaling into Experiment.preprocess"
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
    """Returns a random shift along an axis of `size` pixels, in pixels."""
    unit = size if np.max(shift_range) < 1 else 1
    if isinstance(shift_range, float):
        return jax.random.uniform(key, minval=-1.0, maxval=1.0) * shift_range * unit
    choices = np.arange(max(shift_range, 1)) if isinstance(shift_range, int) else np.asarray(shift_range)
    choice_key, sign_key = jax.random.split(key)
    chosen = jax.random.choice(choice_key, jnp.asarray(choices, jnp.float32))
    return chosen * unit * jax.random.rademacher(sign_key, (), jnp.float32)
