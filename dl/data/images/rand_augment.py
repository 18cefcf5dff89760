"""RandAugment: a few random operations of the same strength (Cubuk et al. 2020).

Shapes: H height, W width, C channels.
"""

import jax
import jax.numpy as jnp

from dl.data.images.affine import FillMode, warp
from dl.data.images.augment import adjust_brightness, adjust_contrast, of_image, to_grey
from dl.types import Augment, Key

MAX_MAGNITUDE = 30


def rand_augment(
    num_ops: int = 2, magnitude: float = 9.0, *, fill_mode: FillMode = "constant", cval: float = 0.5
) -> Augment:
    """Returns an augmentation that applies `num_ops` of 13 operations in order.

    Each operation is drawn uniformly from identity, rotation, shear and translation along either axis,
    auto-contrast, brightness, colour, contrast, sharpness, posterisation and solarisation. These are the
    operations of the paper without equalisation. Under `vmap` all operations are computed for every image,
    and a histogram is slow on accelerators. For the same reason the five geometric operations share one
    resampling.

    Args:
      num_ops: number of operations, N in the paper.
      magnitude: strength from 0 to 30, M in the paper. At 30 the rotation is 30°, the shear 0.3, the
        translation 0.45 of the side, and the factor of brightness, colour, contrast or sharpness 1 ± 0.9. The
        sign is random.
      fill_mode: values outside the image.
      cval: value outside the image for `fill_mode="constant"`, grey by default.
    """
    level = magnitude / MAX_MAGNITUDE

    def apply_one(image_HWC: jax.Array, key: Key) -> tuple[jax.Array, None]:
        which_key, sign_key = jax.random.split(key)
        which = jax.random.randint(which_key, (), 0, NUM_GEOMETRIC + len(COLOUR_OPS))
        signed = level * jax.random.rademacher(sign_key, (), jnp.float32)
        moved = warp(image_HWC, *geometric(which, signed, image_HWC.shape), fill_mode, cval)
        coloured = jax.lax.switch(jnp.maximum(which - NUM_GEOMETRIC, 0), COLOUR_OPS, image_HWC, signed)
        return jnp.where(which < NUM_GEOMETRIC, moved, coloured), None

    def change(key: Key, image_HWC: jax.Array) -> jax.Array:
        return jax.lax.scan(apply_one, image_HWC, jax.random.split(key, num_ops))[0]

    return of_image(change)


NUM_GEOMETRIC = 5


def geometric(which: jax.Array, level: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Returns the matrix and the shift for `warp` of the operation `which` at `level` in [-1, 1].

    0 rotates, 1 shears columns, 2 shears rows, 3 moves columns and 4 moves rows. Others have no effect.
    """

    def only(number: int, value: jax.Array | float) -> jax.Array:
        return jnp.where(which == number, value * level, 0.0)

    angle = only(0, jnp.pi / 6)
    matrix = jnp.array(
        [[jnp.cos(angle), jnp.sin(angle) + only(2, 0.3)], [only(1, 0.3) - jnp.sin(angle), jnp.cos(angle)]]
    )
    return matrix, jnp.stack([only(4, 0.45 * shape[0]), only(3, 0.45 * shape[1])])


def auto_contrast(image_HWC: jax.Array, level: jax.Array) -> jax.Array:
    """Returns the image with each channel stretched to [0, 1]. A constant channel is not changed."""
    low, high = image_HWC.min((0, 1), keepdims=True), image_HWC.max((0, 1), keepdims=True)
    spread = high - low
    return jnp.where(spread > 0, (image_HWC - low) / jnp.where(spread > 0, spread, 1.0), image_HWC)


def colour(image_HWC: jax.Array, level: jax.Array) -> jax.Array:
    """Returns a blend with the grey image, clipped to [0, 1]. Level 0 is the image, level -1/0.9 is grey."""
    return _blend(jnp.broadcast_to(to_grey(image_HWC), image_HWC.shape), image_HWC, level)


def sharpness(image_HWC: jax.Array, level: jax.Array) -> jax.Array:
    """Returns a blend with a smoothed image. The 3 × 3 kernel is 1 around a 5; the border is not smoothed."""
    height, width, _ = image_HWC.shape
    windows = [
        image_HWC[row : height - 2 + row, column : width - 2 + column]
        for row in range(3)
        for column in range(3)
    ]
    smooth = image_HWC.at[1:-1, 1:-1].set((sum(windows) + 4 * image_HWC[1:-1, 1:-1]) / 13)
    return _blend(smooth, image_HWC, level)


def posterize(image_HWC: jax.Array, level: jax.Array) -> jax.Array:
    """Returns the image with the low bits of its bytes cleared. 8 bits are kept at level 0, 4 bits at ±1."""
    step = 2.0 ** jnp.round(4 * jnp.abs(level))
    return jnp.floor(jnp.round(image_HWC * 255) / step) * step / 255


def solarize(image_HWC: jax.Array, level: jax.Array) -> jax.Array:
    """Returns the image with values from a threshold on inverted. It is 1 at level 0 and 0 at ±1."""
    return jnp.where(image_HWC >= 1 - jnp.abs(level), 1 - image_HWC, image_HWC)


def _blend(other: jax.Array, image: jax.Array, level: jax.Array) -> jax.Array:
    return jnp.clip(other + (1 + 0.9 * level) * (image - other), 0.0, 1.0)


COLOUR_OPS = (
    lambda image, level: image,
    auto_contrast,
    lambda image, level: adjust_brightness(image, 1 + 0.9 * level),
    colour,
    lambda image, level: adjust_contrast(image, 1 + 0.9 * level),
    sharpness,
    posterize,
    solarize,
)
