"""Fast decoding of photographs: JPEG files at a reduced scale, and resizing with vector instructions.

It needs the extra `streaming`. The pixels differ from those of Pillow alone:

- A resized pixel differs by at most 1 of 255, because `cykooz_resizer` rounds its weights to 16 bits.
  Its filter is Pillow's: bilinear, and as wide as the images shrink.
- An image that is at least twice as large as needed is decoded at 1/2, 1/4 or 1/8 of its size, by the
  inverse cosine transform of libjpeg-turbo.

`simplejpeg` decodes to the same bits as Pillow, because both use libjpeg-turbo. It needs fewer copies.
"""

import importlib.util
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from dl.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

_PACKAGES = ("simplejpeg", "cykooz_resizer")
_SCALES = (8, 4, 2)  # libjpeg-turbo has vector instructions for these only
_MAX_KEPT_BYTES = 2**24


class _OfThread(threading.local):
    """What a thread keeps between two images, because the system zeroes fresh memory."""

    def __init__(self) -> None:
        self.buffer = np.empty(0, np.uint8)
        self.resizer: Any = None


_of_thread = _OfThread()


def check_installed() -> None:
    """Raises UserError if a package of the extra `streaming` is not installed."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"fast_decoding=True needs {' and '.join(missing)}, which is not installed; "
            "run pip install -e '.[streaming]', or leave fast_decoding out"
        )


def load(image: "Image.Image", data: bytes, height: int, width: int) -> "Image.Image":
    """Returns the decoded pixels of an opened image, if it is a JPEG at a reduced scale.

    Args:
      image: the image, of which only the header is read.
      data: content of its file.
      height: least height of the result, in pixels, if the image is not smaller. It may be turned later.
      width: least width, likewise.

    Raises:
      OSError: the image is damaged.
    """
    if image.format == "JPEG":
        side = max(height, width)
        scale = next((scale for scale in _SCALES if scale * side <= min(image.size)), 1)
        if scale > 1:
            image.draft(None, (side, side))  # changes `image.size`
        if image.mode == "RGB" and (decoded := _decode(data, image.size, scale)) is not None:
            return decoded
    image.load()
    return image


def resize(image: "Image.Image", width: int, height: int) -> "Image.Image":
    """Returns an image of another size. Modes other than grey and RGB are left to Pillow."""
    from cykooz_resizer import FilterType, ResizeAlg, ResizeOptions, Resizer
    from PIL import Image

    if image.mode not in ("L", "RGB"):
        return image.resize((width, height), Image.Resampling.BILINEAR)
    if _of_thread.resizer is None:
        _of_thread.resizer = Resizer()
    resized = Image.new(image.mode, (width, height))
    options = ResizeOptions(resize_alg=ResizeAlg.convolution(FilterType.bilinear))
    _of_thread.resizer.resize_pil(image, resized, options)
    return resized


def _decode(data: bytes, size: tuple[int, int], scale: int) -> "Image.Image | None":
    """Returns an image in RGB, or None if Pillow must decode it or state what is wrong with it."""
    import simplejpeg
    from PIL import Image

    width, height = size
    num_bytes = width * height * 3
    buffer = _of_thread.buffer
    if num_bytes > buffer.size:
        buffer = np.empty(num_bytes, np.uint8)
        if num_bytes <= _MAX_KEPT_BYTES:
            _of_thread.buffer = buffer
    try:
        pixels = simplejpeg.decode_jpeg(
            data, "RGB", min_height=height, min_width=width, min_factor=scale, buffer=buffer
        )
    except ValueError:  # also for damage that Pillow accepts
        return None
    if pixels.shape != (height, width, 3):
        return None
    return Image.frombytes("RGB", size, pixels.data)  # a copy
