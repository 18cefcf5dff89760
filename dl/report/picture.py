"""Pictures of a report, as data that are a part of the page."""

import base64
import io

import numpy as np

from dl.types import Source

MAX_SIDE = 128  # pixels of a picture; larger ones are made smaller


def to_data_uri(image: np.ndarray) -> str:
    """Returns a uint8 image (H, W, 1) or (H, W, 3) as the data URI of a PNG."""
    from PIL import Image

    picture = Image.fromarray(image[..., 0] if image.shape[-1] < 3 else image[..., :3])
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    content = io.BytesIO()
    picture.save(content, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def can_be_shown(source: Source) -> bool:
    """Whether a split contains uint8 images."""
    image = source.spec.get("image")
    return image is not None and len(image.shape) == 3 and image.dtype == np.uint8
