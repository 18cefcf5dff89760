"""Corruptions of images with five severities, on the device, to test the robustness of a model.

A corruption is a function of a random key, ONE float32 image in [0, 1] and a severity from 1 to 5, which may
be traced. Eight corruptions are those of Hendrycks & Dietterich 2019, with the constants of their code. If no
side is longer than `MAX_SMALL_SIDE`, the constants are those of CIFAR-10-C, otherwise those of ImageNet-C.
The lengths of ImageNet-C are for 224 pixels and are scaled by the shorter side. `translation` and `rotation`
are additional, with constants chosen here.

Shapes: B examples, H height, W width, C channels.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dl.data.images.affine import affine_matrix, warp
from dl.data.images.decoding import pixel_scale
from dl.types import Batch, Key

SEVERITIES = (1, 2, 3, 4, 5)
MAX_SMALL_SIDE = 64
_LARGE_SIDE = 224

Corruption = Callable[[Key, jax.Array, jax.Array], jax.Array]


def gaussian_noise(key: Key, image_HWC: jax.Array, severity: jax.Array) -> jax.Array:
    """Adds normal noise to each value."""
    deviation = _constant(severity, image_HWC, (0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38))
    return image_HWC + deviation * jax.random.normal(key, image_HWC.shape)


def shot_noise(key: Key, image_HWC: jax.Array, severity: jax.Array) -> jax.Array:
    """Replaces each value by a Poisson number of photons, divided by the mean number of photons of white."""
    photons = _constant(severity, image_HWC, (500, 250, 100, 75, 50), (60, 25, 12, 5, 3))
    return jax.random.poisson(key, image_HWC * photons).astype(jnp.float32) / photons


def impulse_noise(key: Key, image_HWC: jax.Array, severity: jax.Array) -> jax.Array:
    """Replaces a fraction of the values by 0 or 1, with equal probability."""
    fraction = _constant(severity, image_HWC, (0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27))
    draws_HWC = jax.random.uniform(key, image_HWC.shape)
    salted_HWC = jnp.where(draws_HWC >= 1 - fraction / 2, 1.0, image_HWC)
    return jnp.where(draws_HWC < fraction / 2, 0.0, salted_HWC)


def gaussian_blur(key: Key, image_HWC: jax.Array, severity: jax.Array) -> jax.Array:
    """Blurs by a Gaussian that is cut off at four standard deviations. Pixels at the edge are repeated."""
    small, large = (0.4, 0.6, 0.7, 0.8, 1.0), (1.0, 2.0, 3.0, 4.0, 6.0)
    unit = _length_unit(image_HWC)
    deviation = unit * _constant(severity, image_HWC, small, large)
    radius = int(4 * unit * (large if _is_large(image_HWC) else small)[-1] + 0.5)
    offsets_D = np.arange(-radius, radius + 1)
    weights_D = jnp.exp(-(offsets_D**2) / (2 * deviation**2))
    weights_D = jnp.where(np.abs(offsets_D) <= jnp.floor(4 * deviation + 0.5), weights_D, 0.0)
    weights_D = weights_D / weights_D.sum()

    def matrix(size: int) -> jax.Array:
        sources = np.clip(np.arange(size)[:, None] + offsets_D, 0, size - 1)
        return (weights_D[None, :, None] * jax.nn.one_hot(sources, size)).sum(1)

    return _mix(image_HWC, matrix)


def motion_blur(key: Key, image_HWC: jax.Array, severity: jax.Array) -> jax.Array:
    """Blurs along a line at most 45° from the horizontal, by half of a Gaussian, as ImageMagick does."""
    small, large = (
        ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    )
    unit = _length_unit(image_HWC)
    radius, deviation = unit * _constant(severity, image_HWC, small, large)
    reach = 2 * int(np.ceil(unit * (large if _is_large(image_HWC) else small)[-1][0]))
    taps_T = np.arange(reach + 1)
    weights_T = jnp.exp(-(taps_T**2) / (2 * deviation**2))
    weights_T = jnp.where(taps_T <= 2 * jnp.ceil(radius), weights_T, 0.0)
    angle = jax.random.uniform(key, minval=-jnp.pi / 4, maxval=jnp.pi / 4)
    offsets_T2 = jnp.ceil(taps_T[:, None] * jnp.stack([jnp.sin(angle), jnp.cos(angle)])[None] - 0.5)
    padded_HWC = jnp.pad(image_HWC, ((reach, reach), (0, reach), (0, 0)), "edge")

    def add(total_HWC: jax.Array, tap: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        weight, (row, column) = tap
        moved_HWC = jax.lax.dynamic_slice(padded_HWC, (reach + row, column, 0), image_HWC.shape)
        return total_HWC + weight * moved_HWC, None

    taps = (weights_T / weights_T.sum(), offsets_T2.astype(jnp.int32))
    return jax.lax.scan(add, jnp.zeros_like(image_HWC), taps)[0]


def brightness(key: Key, image_HWC: jax.Array, severity: jax.Array) -> jax.Array:
    """Adds a constant to the V of HSV, the largest channel of a pixel. Hue and saturation do not change."""
    added = _constant(severity, image_HWC, (0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5))
    value_HW1 = image_HWC.max(-1, keepdims=True)
    brighter_HW1 = jnp.minimum(value_HW1 + added, 1.0)
    is_black_HW1 = value_HW1 == 0
    factor_HW1 = brighter_HW1 / jnp.where(is_black_HW1, 1.0, value_HW1)
    return jnp.where(is_black_HW1, brighter_HW1, image_HWC * factor_HW1)


def contrast(key: Key, image_HWC: jax.Array, severity: jax.Array) -> jax.Array:
    """Reduces the distance of each channel to its mean over the image."""
    factor = _constant(severity, image_HWC, (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05))
    mean_11C = image_HWC.mean((0, 1), keepdims=True)
    return mean_11C + factor * (image_HWC - mean_11C)


def pixelate(key: Key, image_HWC: jax.Array, severity: jax.Array) -> jax.Array:
    """Reduces the size of the image and enlarges it again, both as Pillow's filter `BOX` does."""
    share = _constant(severity, image_HWC, (0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25))

    def matrix(size: int) -> jax.Array:
        # Whole numbers prevent rounding errors from moving the edge of a box.
        boxes = jnp.maximum(jnp.floor(size * share + 1e-4), 1).astype(jnp.int32)
        box_S = (2 * jnp.arange(size) + 1) * boxes // (2 * size)
        low_S, high_S = (
            ((2 * edge_S * size + boxes) // (2 * boxes))[:, None] for edge_S in (box_S, box_S + 1)
        )
        positions = jnp.arange(size)[None]
        inside_SS = (low_S <= positions) & (positions < high_S)
        return inside_SS / inside_SS.sum(1, keepdims=True)

    return _mix(image_HWC, matrix)


def translation(key: Key, image_HWC: jax.Array, severity: jax.Array) -> jax.Array:
    """Moves the image in a random direction, by a share of its shorter side. Edge pixels fill the rest."""
    shares = (0.04, 0.08, 0.12, 0.16, 0.20)
    distance = _constant(severity, image_HWC, shares, shares) * min(image_HWC.shape[:2])
    angle = jax.random.uniform(key, maxval=2 * jnp.pi)
    shift = distance * jnp.stack([jnp.sin(angle), jnp.cos(angle)])
    return warp(image_HWC, jnp.eye(2), shift, "nearest")


def rotation(key: Key, image_HWC: jax.Array, severity: jax.Array) -> jax.Array:
    """Rotates the image about its centre by 6° to 30°, in a random direction. Edge pixels fill the rest."""
    degrees = (6, 12, 18, 24, 30)
    angle = jnp.deg2rad(_constant(severity, image_HWC, degrees, degrees))
    angle = angle * jax.random.rademacher(key, (), jnp.float32)
    return warp(image_HWC, affine_matrix(angle, jnp.ones(()), jnp.zeros(())), jnp.zeros(2), "nearest")


CORRUPTIONS: tuple[Corruption, ...] = (
    *(gaussian_noise, shot_noise, impulse_noise),
    *(gaussian_blur, motion_blur),
    *(brightness, contrast, pixelate),
    *(translation, rotation),
)
NAMES = tuple(corruption.__name__ for corruption in CORRUPTIONS)


def corrupt_image(key: Key, image_HWC: jax.Array, which: jax.Array, severity: jax.Array) -> jax.Array:
    """Returns a corruption of a float32 image in [0, 1], clipped to [0, 1].

    One compiled program contains all corruptions.

    Args:
      key: random key of the corruption.
      image_HWC: image of any size and number of channels.
      which: index into `CORRUPTIONS`.
      severity: severity from 1 to 5. 0 returns the image unchanged.
    """
    branches: tuple[Corruption, ...] = (lambda key, image_HWC, severity: image_HWC, *CORRUPTIONS)
    chosen = jnp.where(severity > 0, which + 1, 0)
    return jnp.clip(jax.lax.switch(chosen, branches, key, image_HWC, severity), 0.0, 1.0)


def corrupt_stored(
    batch: Batch, name: str, which: jax.Array, severity: jax.Array, seed: int | jax.Array
) -> Batch:
    """Returns a stored batch with corrupted images, in the dtype in which they are stored.

    The result for an image depends only on the seed, the corruption, the severity and its row in the split
    (`index`). It depends neither on the batch nor on the number of devices.

    Args:
      batch: batch before any preprocessing.
      name: name of the feature that holds images of 8 bits, 16 bits or floats in [0, 1], shape B × H × W × C.
      which: index into `CORRUPTIONS`.
      severity: severity from 1 to 5. 0 returns the images unchanged.
      seed: random seed.
    """
    stored_BHWC = batch[name]
    scale = pixel_scale(stored_BHWC.dtype, name)
    images_BHWC = jnp.asarray(stored_BHWC, jnp.float32) / scale
    key = jax.random.key(seed, impl="threefry2x32")  # JAX draws Poisson numbers only with this generator.
    key = jax.random.fold_in(jax.random.fold_in(key, which), severity)
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["index"])
    images_BHWC = jax.vmap(corrupt_image, (0, 0, None, None))(keys_B, images_BHWC, which, severity)
    if jnp.issubdtype(stored_BHWC.dtype, jnp.integer):
        images_BHWC = jnp.round(images_BHWC * scale)
    return {**batch, name: images_BHWC.astype(stored_BHWC.dtype)}


def constants_of(shape: tuple[int, ...]) -> str:
    """Returns the name of the data set whose constants are used for images of a shape (H, W, C)."""
    return "ImageNet-C" if max(shape[:2]) > MAX_SMALL_SIDE else "CIFAR-10-C"


def _is_large(image_HWC: jax.Array) -> bool:
    return constants_of(image_HWC.shape) == "ImageNet-C"


def _length_unit(image_HWC: jax.Array) -> float:
    return min(image_HWC.shape[:2]) / _LARGE_SIDE if _is_large(image_HWC) else 1.0


def _constant(
    severity: jax.Array, image_HWC: jax.Array, small: tuple[object, ...], large: tuple[object, ...]
) -> jax.Array:
    return jnp.asarray(large if _is_large(image_HWC) else small, jnp.float32)[severity - 1]


def _mix(image_HWC: jax.Array, matrix: Callable[[int], jax.Array]) -> jax.Array:
    """Returns the image multiplied along each axis by the matrix `matrix(size)` of that axis."""
    rows_HH, columns_WW = (matrix(size) for size in image_HWC.shape[:2])
    # By default accelerators multiply matrices with a low precision.
    return jnp.einsum("ih,jw,hwc->ijc", rows_HH, columns_WW, image_HWC, precision=jax.lax.Precision.HIGHEST)
