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

from dl.data.images.centre import centre_box
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
        self.options: Any = None


_of_thread = _OfThread()


def check_installed() -> None:
    """Raises UserError if a package of the extra `streaming` is not installed."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"fast_decoding=True needs {' and '.join(missing)}, which is not installed; "
            "run pip install -e '.[streaming]', or leave fast_decoding out"
        )


def pixels(image: "Image.Image", data: bytes, image_shape: tuple[int, int, int]) -> np.ndarray | None:
    """Returns a JPEG file in colours with its centre cropped and resized, as uint8 (H, W, 3).

    Args:
      image: the image, of which only the header is read. It must be upright.
      data: content of its file.
      image_shape: shape of the result.

    Returns:
      The array; None for another file, and for one that Pillow must decode.
    """
    from cykooz_resizer import ImageData, PixelType

    height, width, channels = image_shape
    decoded = _decoded(image, data, height, width) if channels == 3 else None
    if decoded is None:
        return None
    left, top, right, bottom = centre_box(decoded.shape[1], decoded.shape[0], width, height)
    middle = decoded[top:bottom, left:right].tobytes()
    resized = ImageData(width, height, PixelType.U8x3)
    _resize(ImageData(right - left, bottom - top, PixelType.U8x3, middle), resized)
    return np.frombuffer(resized.get_buffer(), np.uint8).reshape(image_shape)


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
    from PIL import Image

    decoded = _decoded(image, data, height, width)
    if decoded is not None:
        return Image.frombytes("RGB", image.size, decoded.data)  # a copy
    image.load()
    return image


def resize(image: "Image.Image", width: int, height: int) -> "Image.Image":
    """Returns an image of another size. Modes other than grey and RGB are left to Pillow."""
    from PIL import Image

    if image.mode not in ("L", "RGB"):
        return image.resize((width, height), Image.Resampling.BILINEAR)
    resized = Image.new(image.mode, (width, height))
    _resize(image, resized)
    return resized


def _resize(image: Any, resized: Any) -> None:
    """Fills the second image with the first one, both of Pillow or both of `cykooz_resizer`."""
    from cykooz_resizer import FilterType, ImageData, ResizeAlg, ResizeOptions, Resizer

    mine = _of_thread
    if mine.resizer is None:
        mine.resizer = Resizer()
        mine.options = ResizeOptions(resize_alg=ResizeAlg.convolution(FilterType.bilinear))
    fill = mine.resizer.resize if isinstance(image, ImageData) else mine.resizer.resize_pil
    fill(image, resized, mine.options)


def _decoded(image: "Image.Image", data: bytes, height: int, width: int) -> np.ndarray | None:
    """Returns a JPEG in RGB at a reduced scale, to be used before the thread decodes another one.

    None: it is something else, or Pillow must decode it or state what is wrong with it. Then the size of
    `image` is the reduced one.
    """
    if image.format != "JPEG":
        return None
    side = max(height, width)
    scale = next((scale for scale in _SCALES if scale * side <= min(image.size)), 1)
    if scale > 1:
        image.draft(None, (side, side))  # changes `image.size`
    return _decode(data, image.size, scale) if image.mode == "RGB" else None


def _decode(data: bytes, size: tuple[int, int], scale: int) -> np.ndarray | None:
    import simplejpeg

    width, height = size
    num_bytes = width * height * 3
    buffer = _of_thread.buffer
    if num_bytes > buffer.size:
        buffer = np.empty(num_bytes, np.uint8)
        if num_bytes <= _MAX_KEPT_BYTES:
            _of_thread.buffer = buffer
    try:
        decoded = simplejpeg.decode_jpeg(
            data, "RGB", min_height=height, min_width=width, min_factor=scale, buffer=buffer
        )
    except ValueError:  # also for damage that Pillow accepts
        return None
    return decoded if decoded.shape == (height, width, 3) else None
