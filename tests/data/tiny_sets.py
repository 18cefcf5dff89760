"""Examples for sets of a few images."""

from typing import Any

import numpy as np
from PIL import Image


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def grey_examples(count: int, size: int = 4, seed: int = 0) -> list[dict[str, Any]]:
    """Noise with the labels 0, 1, 2, 0, …."""
    pixels = noise(seed, count, size, size)
    return [{"image": Image.fromarray(pixels[i]), "label": i % 3} for i in range(count)]
