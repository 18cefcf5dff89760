"""Image files: which files are images, and how one is read. Training and predicting share these rules."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dl.data.images.disk_dataset import Unreadable, fit_pixels
from dl.errors import UserError
from dl.system.text import printable

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm"),
)

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # Pillow has others; one runs programs
_LEFTOVERS = {  # what systems and programs leave beside the files of people
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir", "#recycle", "$recycle.bin"),
    *("__macosx", "__pycache__", "system volume information", "lost+found"),
}
_ORIENTATION = 0x0112  # of EXIF


def is_hidden(name: str) -> bool:
    """Whether a name in a folder is not meant for people: it starts with a dot, or a system left it there."""
    return name.startswith(".") or name.casefold() in _LEFTOVERS


def is_image_name(name: str) -> bool:
    """Whether a file has the ending of an image, in large or small letters, and is not hidden."""
    return not is_hidden(name) and name.lower().endswith(SUFFIXES)


def list_folder(folder: Path) -> tuple[list[str], list[str]]:
    """Returns the names of the folders and of the files in `folder`, sorted, without hidden ones.

    A link counts as what it leads to.

    Raises:
      UserError: it cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            seen = [(entry.name, _is_folder(entry)) for entry in entries if not is_hidden(entry.name)]
    except OSError as error:
        raise UserError(
            f"{printable(folder)} cannot be read ({error.strerror}): give yourself read permission"
        ) from None
    return (
        sorted(name for name, is_folder in seen if is_folder),
        sorted(name for name, is_folder in seen if not is_folder),
    )


def images_below(folder: Path) -> list[Path]:
    """Returns the image files in `folder` and in its folders at any depth, by path; links are followed."""
    return sorted(_walk(folder, frozenset()))


def _walk(folder: Path, above: frozenset[str]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in above:  # a link that leads back
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
    """Reads the header of an image, whose format its content decides, not its name."""
    from PIL import Image, UnidentifiedImageError

    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would wait for ever
            raise Unreadable(path, "it is no file")
        return Image.open(path, formats=_FORMATS)
    except UnidentifiedImageError:
        raise Unreadable(path, f"its content is none of {', '.join(_FORMATS)}") from None
    except (ImportError, MemoryError, Unreadable):
        raise
    except Exception as error:  # Pillow's plugins each raise their own
        raise Unreadable(path, getattr(error, "strerror", None) or error) from error


def upright_size(image: "Image.Image") -> tuple[int, int]:
    """Returns the height and width that an opened image has once it is upright."""
    width, height = image.size
    # Of a PNG the orientation is known only when all of it is read, and a square has no need. Of a TIFF
    # Pillow states the size as it is upright.
    if width != height and image.format != "TIFF" and _orientation(image) >= 5:
        return width, height
    return height, width


def read_pixels(path: Path, image_shape: tuple[int, int, int], is_resized: bool | None = None) -> np.ndarray:
    """Returns one image file upright, with the channels of `image_shape`, (H, W, C), as uint8.

    Args:
      path: of the file.
      image_shape: of what is returned.
      is_resized: whether its middle is cropped and resized to that shape; None: where it has another one.

    Raises:
      Unreadable: it is no image.
    """
    try:
        with open_image(path) as opened:
            image = _upright(opened)
            if is_resized is None:
                is_resized = image.size != (image_shape[1], image_shape[0])
            return fit_pixels(image, image_shape, is_resized)
    except (ImportError, MemoryError, UserError):
        raise
    except Exception as error:  # Pillow's plugins each raise their own
        raise Unreadable(path, error) from error


def _upright(image: "Image.Image") -> "Image.Image":
    from PIL.Image import Transpose

    image.load()  # which turns a TIFF by itself
    turns: dict[int, Any] = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    turn = turns.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: "Image.Image") -> int:
    """Returns the orientation of EXIF, 1 to 8; 1, as it is stored, where it states none or nonsense."""
    try:
        stated = image.getexif().get(_ORIENTATION, 1)
    except (ImportError, MemoryError):
        raise
    except Exception:  # EXIF that is cut off, or written wrongly; Pillow raises whatever it meets
        return 1
    return stated if isinstance(stated, int) and 1 <= stated <= 8 else 1
