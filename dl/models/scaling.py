"""Input scaling: from pixels in [0, 1], the default of all data, to the range that a network expects.

A scaling is a function of a batch of images. It is an attribute of the model, so that weights are always used
with the range that they were trained on.

Shapes: B batch, H height, W width, C channels.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

Scaling = Callable[[jax.Array], jax.Array]


def identity(image_BHWC: jax.Array) -> jax.Array:
    """Returns the pixels unchanged, in [0, 1]."""
    return image_BHWC


def minus_one_to_one(image_BHWC: jax.Array) -> jax.Array:
    """Returns the pixels mapped to [-1, 1], as Inception, MobileNet and ViT expect them."""
    return 2.0 * image_BHWC - 1.0


def standardize(mean: Sequence[float], std: Sequence[float]) -> Scaling:
    """Returns the scaling (pixel - mean) / std.

    The scaling raises ValueError for images with another number of channels.

    Args:
      mean: mean of each channel, of pixels in [0, 1].
      std: standard deviation of each channel, of pixels in [0, 1].
    """

    def scaling(image_BHWC: jax.Array) -> jax.Array:
        if image_BHWC.shape[-1] != len(mean):
            raise ValueError(
                f"the scaling has {len(mean)} channels and the images have {image_BHWC.shape[-1]}; "
                "give the model another `scaling`, or images with as many channels"
            )
        mean_C, std_C = (jnp.asarray(values, image_BHWC.dtype) for values in (mean, std))
        return (image_BHWC - mean_C.reshape(1, 1, 1, -1)) / std_C.reshape(1, 1, 1, -1)

    return scaling


imagenet_statistics: Scaling = standardize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Standardises by the mean and the standard deviation of ImageNet's RGB pixels, as in torchvision."""
