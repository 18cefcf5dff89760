"""Deterministic decoding of images inside the compiled step.

Shapes: B examples, H height, W width, C channels.
"""

import jax
import jax.numpy as jnp

from dl.types import Batch


def to_unit_range(batch: Batch) -> Batch:
    """Returns the batch with every uint8 feature as float32 in [0, 1]."""
    return {
        name: jnp.asarray(x, jnp.float32) / 255.0 if x.dtype == jnp.uint8 else x for name, x in batch.items()
    }


def resized(height: int, width: int):  # type: ignore[no-untyped-def]
    """Returns a preprocessing: `to_unit_range`, then `image` at this size by bilinear interpolation."""

    def preprocess(batch: Batch) -> Batch:
        batch = to_unit_range(batch)
        images_BHWC = batch["image"]
        shape = (images_BHWC.shape[0], height, width, images_BHWC.shape[-1])
        if images_BHWC.shape != shape:
            images_BHWC = jax.image.resize(images_BHWC, shape, "bilinear")
        return {**batch, "image": images_BHWC}

    return preprocess
