"""Image files: which files are images, and how they are read. Training and prediction share these rules."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dl.data.images import fast_decoding
from dl.data.images.disk_dataset import Unreadable, fit_pixels
from dl.errors import UserError
from dl.system.text import printable

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm"),
)

# Pillow has other formats too. One of them runs programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_LEFTOVERS = {  # files and folders that systems and programs create
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir", "#recycle", "$recycle.bin"),
    *("__macosx", "__pycache__", "system volume information", "lost+found"),
}
_ORIENTATION = 0x0112  # tag of the orientation in EXIF


def is_hidden(name: str) -> bool:
    """Returns whether a name is ignored: it starts with a dot, or a system or program creates it."""
    return name.startswith(".") or name.casefold() in _LEFTOVERS


def is_image_name(name: str) -> bool:
    """Returns whether a file has the extension of an image, in upper or lower case, and is not hidden."""
    return not is_hidden(name) and name.lower().endswith(SUFFIXES)


def list_folder(folder: Path) -> tuple[list[str], list[str]]:
    """Returns the names of the folders and of the files in `folder`, sorted, without hidden ones.

    Links are followed.

    Raises:
      UserError: the folder cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            seen = [(entry.name, _is_folder(entry)) for entry in entries if not is_hidden(entry.name)]
    except OSError as error:
        raise UserError(
            f"{printable(folder)} cannot be read ({error.strerror}): change its permissions"
        ) from None
    return (
        sorted(name for name, is_folder in seen if is_folder),
        sorted(name for name, is_folder in seen if not is_folder),
    )


def images_below(folder: Path) -> list[Path]:
    """Returns the image files in `folder` and its subfolders at any depth, sorted. Links are followed."""
    return sorted(_walk(folder, frozenset()))


def _walk(folder: Path, above: frozenset[str]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in above:  # a link to a parent folder
        return
    folders, files = list_folder(folder)
    yield from (folder / name for name in files if is_image_name(name))
    for name in folders:
        yield from _walk(folder / name, above | {real})


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # such as a link to itself
        return False


def open_image(path: Path) -> "Image.Image":
    """Reads the header of an image. Its format follows from its content, not from its name."""
    from PIL import Image, UnidentifiedImageError

    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # reading a pipe would wait forever
            raise Unreadable(path, "it is not a regular file")
        return Image.open(path, formats=_FORMATS)
    except UnidentifiedImageError:
        raise Unreadable(path, f"its content is not one of {', '.join(_FORMATS)}") from None
    except (ImportError, MemoryError, Unreadable):
        raise
    except Exception as error:  # Pillow's plugins each raise their own
        raise Unreadable(path, getattr(error, "strerror", None) or error) from error


def upright_size(image: "Image.Image") -> tuple[int, int]:
    """Returns the height and width of an opened image after it is turned upright."""
    width, height = image.size
    # The orientation of a PNG is known only after reading the whole file, and a square does not need it. For
    # a TIFF Pillow returns the upright size.
    if width != height and image.format != "TIFF" and _orientation(image) >= 5:
        return width, height
    return height, width


def read_pixels(
    path: Path, image_shape: tuple[int, int, int], is_resized: bool | None = None, is_fast: bool = False
) -> np.ndarray:
    """Returns an image file, turned upright, as uint8 with the channels of `image_shape`, (H, W, C).

    Args:
      path: path of the file.
      image_shape: shape of the returned array.
      is_resized: whether the centre is cropped and resized to that shape. `None` means only if the image has
        another size.
      is_fast: whether `fast_decoding` decodes and resizes.

    Raises:
      Unreadable: the file is not an image.
    """
    try:
        with open_image(path) as opened:
            loaded = opened
            if is_fast and is_resized:
                data = path.read_bytes()
                fast = fast_decoding.pixels(opened, data, image_shape) if _orientation(opened) == 1 else None
                if fast is not None:
                    return fast
                loaded = fast_decoding.load(opened, data, *image_shape[:2])
            image = _upright(opened, loaded)
            if is_resized is None:
                is_resized = image.size != (image_shape[1], image_shape[0])
            return fit_pixels(image, image_shape, is_resized, is_fast)
    except (ImportError, MemoryError, UserError):
        raise
    except Exception as error:  # Pillow's plugins each raise their own
        raise Unreadable(path, error) from error


def _upright(opened: "Image.Image", image: "Image.Image") -> "Image.Image":
    """Returns the image, turned as the header of the opened file says."""
    from PIL.Image import Transpose

    image.load()  # This also turns a TIFF upright.
    turns: dict[int, Any] = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    turn = turns.get(_orientation(opened))
    return image if turn is None else image.transpose(turn)


def _orientation(image: "Image.Image") -> int:
    """Returns the orientation in EXIF, 1 to 8; 1, which means upright, if it is missing or not valid."""
    try:
        stated = image.getexif().get(_ORIENTATION, 1)
    except (ImportError, MemoryError):
        raise
    except Exception:  # Pillow raises many kinds of errors for damaged EXIF.
        return 1
    return stated if isinstance(stated, int) and 1 <= stated <= 8 else 1
