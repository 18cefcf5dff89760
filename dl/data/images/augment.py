"""Random augmentation on the device: functions of a random key and ONE example, mapped over the batch.

Images are floats in [0, 1]. Every function here changes only the feature `image`. `compose` combines several
functions. See also `rand_augment` and `image_data_generator`. `dl.methods.mixing` mixes several examples.

Shapes: H height, W width, C channels.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dl.data.images.affine import FillMode, affine_matrix, warp
from dl.types import Augment, Batch, Key

PAD_MODES = {"constant": "constant", "nearest": "edge", "reflect": "symmetric", "wrap": "wrap"}


def compose(*augments: Augment) -> Augment:
    """Returns an augmentation that applies several augmentations in order, each with a different key."""

    def augment(key: Key, example: Batch) -> Batch:
        for number, part in enumerate(augments):
            example = part(jax.random.fold_in(key, number), example)
        return example

    return augment


def of_image(change: Callable[[Key, jax.Array], jax.Array]) -> Augment:
    """Returns an augmentation that changes the feature `image` by a function of a key and the image."""

    def augment(key: Key, example: Batch) -> Batch:
        return {**example, "image": change(key, example["image"])}

    return augment


def random_affine(
    *,
    rotate: float = 0.0,
    zoom: float = 0.0,
    shear: float = 0.0,
    shift: float = 0.0,
    fill_mode: FillMode = "constant",
    cval: float = 0.0,
) -> Augment:
    """Returns an augmentation that warps `image` by a random affine map about its centre.

    Each number x is the bound of a uniform distribution over [-x, x]. Values between pixels are interpolated
    bilinearly.

    Args:
      rotate: largest angle, in radians.
      zoom: largest natural logarithm of the scale.
      shear: largest shift of the columns per row, in pixels.
      shift: largest shift along each axis, in pixels, whole or not.
      fill_mode: values outside the image.
      cval: value outside the image for `fill_mode="constant"`.
    """

    def change(key: Key, image_HWC: jax.Array) -> jax.Array:
        draws = jax.random.uniform(key, (5,), minval=-1.0, maxval=1.0)
        angle, log_scale, slant = draws[0] * rotate, draws[1] * zoom, draws[2] * shear
        matrix = affine_matrix(angle, jnp.exp(log_scale), slant)
        return warp(image_HWC, matrix, draws[3:] * shift, fill_mode, cval)

    return of_image(change)


def random_horizontal_flip(probability: float = 0.5) -> Augment:
    """Returns an augmentation that swaps left and right with the given probability."""
    return _random_flip(1, probability)


def random_vertical_flip(probability: float = 0.5) -> Augment:
    """Returns an augmentation that swaps top and bottom with the given probability."""
    return _random_flip(0, probability)


def _random_flip(axis: int, probability: float) -> Augment:
    return of_image(
        lambda key, image: jnp.where(jax.random.bernoulli(key, probability), jnp.flip(image, axis), image)
    )


def random_crop(
    padding: int = 0,
    *,
    size: tuple[int, int] | None = None,
    fill_mode: FillMode = "constant",
    cval: float = 0.0,
) -> Augment:
    """Returns an augmentation that pads every side and crops a window at a random position.

    Args:
      padding: padding on every side, in pixels. 4 is usual for 32 × 32 (He et al. 2016, section 4.2).
      size: height and width of the window. `None` means the size of the image before padding.
      fill_mode: values of the padding.
      cval: value of the padding for `fill_mode="constant"`.

    Raises:
      ValueError: the window is larger than the padded image, when an image is augmented.
    """
    options = {"constant_values": cval} if fill_mode == "constant" else {}

    def change(key: Key, image_HWC: jax.Array) -> jax.Array:
        height, width = size or image_HWC.shape[:2]
        widths = ((padding, padding), (padding, padding), (0, 0))
        padded_HWC = jnp.pad(image_HWC, widths, PAD_MODES[fill_mode], **options)
        free = (padded_HWC.shape[0] - height, padded_HWC.shape[1] - width)
        if min(free) < 0:
            raise ValueError(
                f"a crop of size {(height, width)} does not fit into an image of {image_HWC.shape[:2]} with "
                f"padding={padding}; choose a smaller size"
            )
        row, column = jax.random.randint(key, (2,), 0, jnp.array(free) + 1)
        return jax.lax.dynamic_slice(padded_HWC, (row, column, 0), (height, width, image_HWC.shape[2]))

    return of_image(change)


def random_brightness(strength: float) -> Augment:
    """Returns an augmentation that multiplies the image by a number in 1 ± `strength` and clips to [0, 1]."""
    return of_image(lambda key, image: adjust_brightness(image, _factor(key, strength)))


def random_contrast(strength: float) -> Augment:
    """Returns an augmentation that scales the distance to the mean luma by a number in 1 ± `strength`."""
    return of_image(lambda key, image: adjust_contrast(image, _factor(key, strength)))


def _factor(key: Key, strength: float) -> jax.Array:
    return jax.random.uniform(key, minval=1 - strength, maxval=1 + strength)


def adjust_brightness(image_HWC: jax.Array, factor: jax.Array) -> jax.Array:
    """Returns the image times the factor, clipped to [0, 1], as Pillow's `Brightness`. 0 gives black."""
    return jnp.clip(image_HWC * factor, 0.0, 1.0)


def adjust_contrast(image_HWC: jax.Array, factor: jax.Array) -> jax.Array:
    """Returns a blend with the mean luma, clipped to [0, 1], as Pillow's `Contrast`. Factor 0 gives grey."""
    mean = to_grey(image_HWC).mean()
    return jnp.clip(mean + factor * (image_HWC - mean), 0.0, 1.0)


def to_grey(image_HWC: jax.Array) -> jax.Array:
    """Returns the luma of an RGB image (ITU-R BT.601), or the mean of other channels, shape H × W × 1."""
    if image_HWC.shape[-1] == 3:
        weights_C = jnp.array([0.299, 0.587, 0.114], image_HWC.dtype)
        return (image_HWC * weights_C[None, None]).sum(-1, keepdims=True)
    return image_HWC.mean(-1, keepdims=True)


def cutout(size: int, cval: float = 0.0) -> Augment:
    """Returns an augmentation that erases a square (DeVries & Taylor 2017, section 3.2).

    The centre is uniform over the image, so a part of the square may be outside the image.

    Args:
      size: side of the square in pixels. The paper uses 16 for CIFAR-10 and 8 for CIFAR-100.
      cval: value inside the square. The paper uses 0 after normalising images to mean 0.
    """

    def change(key: Key, image_HWC: jax.Array) -> jax.Array:
        height, width, _ = image_HWC.shape
        row, column = jax.random.randint(key, (2,), 0, jnp.array([height, width])) - size // 2
        return _blot(image_HWC, row, row + size, column, column + size, cval)

    return of_image(change)


def random_erasing(
    probability: float = 0.5,
    area: tuple[float, float] = (0.02, 0.4),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
    cval: float | None = None,
) -> Augment:
    """Returns an augmentation that erases a rectangle (Zhong et al. 2020, algorithm 1).

    The rectangle is inside the image. A side that is longer than the image is shortened; the paper draws
    again.

    Args:
      probability: probability that a rectangle is erased.
      area: bounds of the area of the rectangle, as a fraction of the image.
      aspect: bounds of height divided by width.
      cval: value inside the rectangle. `None` means uniform noise, which works best in the paper.
    """

    def change(key: Key, image_HWC: jax.Array) -> jax.Array:
        height, width, _ = image_HWC.shape
        whether_key, shape_key, position_key, noise_key = jax.random.split(key, 4)
        draws = jax.random.uniform(shape_key, (2,))
        target = (area[0] + draws[0] * (area[1] - area[0])) * height * width
        ratio = aspect[0] + draws[1] * (aspect[1] - aspect[0])
        size = jnp.stack([jnp.sqrt(target * ratio), jnp.sqrt(target / ratio)])
        bounds = jnp.array([height, width])
        size = jnp.clip(jnp.round(size).astype(jnp.int32), 1, bounds)
        row, column = jax.random.randint(position_key, (2,), 0, bounds - size + 1)
        inside = cval if cval is not None else jax.random.uniform(noise_key, image_HWC.shape)
        erased = _blot(image_HWC, row, row + size[0], column, column + size[1], inside)
        return jnp.where(jax.random.bernoulli(whether_key, probability), erased, image_HWC)

    return of_image(change)


def _blot(
    image_HWC: jax.Array,
    top: jax.Array,
    bottom: jax.Array,
    left: jax.Array,
    right: jax.Array,
    value: jax.Array | float,
) -> jax.Array:
    """Returns the image with `value` in rows [top, bottom) and columns [left, right)."""
    rows_H, columns_W = jnp.arange(image_HWC.shape[0]), jnp.arange(image_HWC.shape[1])
    in_rows_H, in_columns_W = (rows_H >= top) & (rows_H < bottom), (columns_W >= left) & (columns_W < right)
    return jnp.where(in_rows_H[:, None, None] & in_columns_W[None, :, None], value, image_HWC)
