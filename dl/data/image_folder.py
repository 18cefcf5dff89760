"""Image folders: photos/train/CLASS/IMAGE.jpg, or photos/CLASS/IMAGE.jpg, as an image-classification set.

Beside train/ may lie validation/ (or val/) and test/; without any of the three, all is train. The classes are
the folders of train by name, the rows are sorted by class and file name. What is hidden, has another ending
than `SUFFIXES` or lies deeper is not seen.
"""

import difflib
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from dl.data import folders
from dl.data.stored import DEFAULT_IMAGE_SIZE, Stored, StoredSource, fit_pixels, to_pixels
from dl.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")  # Pillow has others, one of which runs programs
_SPLIT_FOLDERS = {"train": ("train",), "validation": ("validation", "val"), "test": ("test",)}
_NUM_CHANNELS = 3
_ORIENTATION = 0x0112  # of EXIF; from 5 on, width and height are exchanged
_VERSION = "1.0.0"  # a folder has none
_MANY_NAMES = 10


@dataclass(frozen=True, kw_only=True)
class ImageFolder(Stored):
    """A folder of images by class; each file is a shard of one example."""

    origin: ClassVar[str] = "the image folder"
    many_examples: ClassVar[int] = 500

    def damaged(self, where: Path | str, reason: object) -> UserError:
        return _unreadable(where, reason)


def describe(dataset: str, image_size: int | None = None) -> ImageFolder:
    """Lists the folder and reads the headers of its images, until two differ in size.

    Images are RGB: grey ones too, so that one coloured image among them changes nothing.

    Args:
      dataset: path of the folder; `~` is the home folder.
      image_size: side of the square that images of varying size are cropped and resized to; 96 if None.

    Raises:
      UserError: if the folder is missing or does not hold images by class, if a class of validation or
        test is none of train, or if a header cannot be read.
    """
    folder = _existing(Path(os.path.abspath(os.path.expanduser(dataset))))
    listed = {split: _list_classes(path, folder) for split, path in _split_folders(folder).items()}
    class_names = tuple(listed["train"])
    for split, classes in listed.items():
        for name in classes:
            if name not in class_names:
                raise _unknown_class(name, split, class_names, folder)
    shards = {
        split: {path: 1 for paths in classes.values() for path in paths} for split, classes in listed.items()
    }
    size = _common_size(path for paths in shards.values() for path in paths)
    height, width = size or (image_size or DEFAULT_IMAGE_SIZE,) * 2
    names = [(split, path.parent.name, path.name) for split, paths in shards.items() for path in paths]
    return ImageFolder(
        folder=folder,
        name=folder.name,
        version=_VERSION,
        image_shape=(height, width, _NUM_CHANNELS),
        is_resized=size is None,
        class_names=class_names,
        shards=shards,
        digest=hashlib.sha256(repr((class_names, names)).encode()).hexdigest(),
    )


class FileSource(StoredSource):
    """The images of one split of an image folder, read and decoded at every access, by several threads."""

    def __init__(self, folder: ImageFolder, split: str, rows: np.ndarray | None = None):
        """`rows` of `split` (all if None) are the examples, in that order; nothing is read yet."""
        super().__init__(folder, split, rows)
        self._folder = folder
        self._paths = list(folder.shards[split])
        self._label_of = {name: label for label, name in enumerate(folder.class_names)}
        self._pool = ThreadPoolExecutor(thread_name_prefix="decode")  # starts a thread when there is work

    def _examples(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
        return self._pool.map(self._decode, [self._paths[row] for row in rows])

    def _decode(self, path: Path) -> tuple[np.ndarray, int]:
        from PIL import ImageOps

        folder = self._folder
        try:
            with _open(path) as image:
                ImageOps.exif_transpose(image, in_place=True)
                pixels = to_pixels(image, folder)
        except (ImportError, MemoryError, UserError):
            raise
        except Exception as error:  # Pillow's plugins each raise their own
            raise _unreadable(path, error) from error
        if pixels.shape != folder.image_shape:
            raise _unreadable(path, f"its size has changed to {pixels.shape}, from {folder.image_shape}")
        return pixels, self._label_of[path.parent.name]


def read_image(path: Path, image_shape: tuple[int, int, int]) -> np.ndarray:
    """Returns one image file upright, its middle cropped and resized to (H, W, C), uint8.

    Raises:
      UserError: it cannot be read as an image.
    """
    from PIL import ImageOps

    try:
        with _open(path) as image:
            ImageOps.exif_transpose(image, in_place=True)
            return fit_pixels(image, image_shape, is_resized=image.size != (image_shape[1], image_shape[0]))
    except (ImportError, MemoryError, UserError):
        raise
    except Exception as error:  # Pillow's plugins each raise their own
        raise _unreadable(path, error) from error


def _unreadable(path: Path | str, reason: object) -> UserError:
    text = " ".join(str(reason).split())[:300]
    return UserError(f"{path} cannot be read as an image ({text}): replace it or take it out of the folder")


def _existing(folder: Path) -> Path:
    if os.path.isdir(folder):  # which, unlike the path's own method, is never an error
        if os.path.exists(folder / "dataset_info.json") or folders.versions(folder):
            raise UserError(
                f"{folder} holds a set that TFDS prepared, not images by class: give its NAME or "
                "NAME/CONFIG, and with --data-dir (TFDS_DATA_DIR) the folder that NAME lies in"
            )
        return folder
    if os.path.exists(folder):
        raise UserError(f"{folder} is a file: {_expected(folder.with_suffix(''))}")
    beside = _list(folder.parent)[0] if os.path.isdir(folder.parent) else []
    near = difflib.get_close_matches(folder.name, beside, n=1)
    hint = f"did you mean {folder.parent / near[0]}?" if near else _expected(folder)
    raise UserError(f"there is no folder {folder}: {hint}")


def _expected(folder: Path) -> str:
    layouts = f"{folder}/train/CLASS/IMAGE.jpg or {folder}/CLASS/IMAGE.jpg"
    return f"expected a folder with images by class, as in {layouts}"


def _split_folders(folder: Path) -> dict[str, Path]:
    """Returns where each split lies that the folder has; train is the folder itself if it has none."""
    held = _list(folder)[0]
    found = {split: [n for n in names if n in held] for split, names in _SPLIT_FOLDERS.items()}
    named = [name for names in found.values() for name in names]
    if not named:
        return {"train": folder}
    if "train" not in named:
        raise UserError(
            f"{folder} has {' and '.join(named)} but no train: expected {folder}/train/CLASS/IMAGE.jpg too"
        )
    for split, names in found.items():
        if len(names) > 1:
            raise UserError(f"{folder} has both {' and '.join(names)}: keep one of them as the {split} split")
    return {split: folder / names[0] for split, names in found.items() if names}


def _list_classes(split_folder: Path, folder: Path) -> dict[str, list[Path]]:
    """Returns the image files of each class, both in the order of their names."""
    names = _list(split_folder)[0]
    if not names:
        wanted = _expected(folder) if split_folder == folder else f"expected {split_folder}/CLASS/IMAGE.jpg"
        raise UserError(f"{split_folder} holds no folders of classes: {wanted}")
    classes = {}
    for name in names:
        deeper, files = _list(split_folder / name)
        if not files:
            hint = "fill it or remove it"
            if deeper:
                hint = f"nothing is read from its folders {_some(deeper)}; if it is the set, give its path"
            raise UserError(
                f"{split_folder / name} holds no images (no file ends in {', '.join(SUFFIXES)}): "
                f"expected {split_folder}/CLASS/IMAGE.jpg; {hint}"
            )
        classes[name] = [split_folder / name / file for file in files]
    return classes


def _list(folder: Path) -> tuple[list[str], list[str]]:
    """Returns the names of the folders and of the image files in `folder`, sorted."""
    try:
        with os.scandir(folder) as entries:
            seen = [(entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(
            f"{folder} cannot be read ({error.strerror}): give yourself read permission"
        ) from None
    return (
        sorted(name for name, is_folder in seen if is_folder),
        sorted(name for name, is_folder in seen if not is_folder and name.lower().endswith(SUFFIXES)),
    )


def _unknown_class(name: str, split: str, class_names: tuple[str, ...], folder: Path) -> UserError:
    near = difflib.get_close_matches(name, class_names, n=1)
    hint = f"rename it (to {near[0]}?)" if near else f"rename it (train has {_some(class_names)})"
    return UserError(
        f"the class {name} of the {split} split is none of {folder / 'train'}: {hint} or remove it"
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_MANY_NAMES]) + (", …" if len(names) > _MANY_NAMES else "")


def _common_size(paths: Iterable[Path]) -> tuple[int, int] | None:
    """Returns the height and width that all images have, upright; None as soon as two differ."""
    common = None
    for path in paths:
        with _open(path) as image:
            width, height = image.size
            try:
                # Of a PNG the orientation is known only when all of it is read, and a square has no need.
                if width != height and image.getexif().get(_ORIENTATION, 1) >= 5:
                    width, height = height, width
            except (ImportError, MemoryError):
                raise
            except Exception as error:  # Pillow's plugins each raise their own
                raise _unreadable(path, error) from error
        if common not in (None, (height, width)):
            return None
        common = (height, width)
    return common


def _open(path: Path) -> "Image.Image":
    """Reads the header of an image, whose format its content decides, not its name."""
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(path, formats=_FORMATS)
    except UnidentifiedImageError:
        raise _unreadable(path, f"its content is none of {', '.join(_FORMATS)}") from None
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # Pillow's plugins each raise their own
        raise _unreadable(path, getattr(error, "strerror", None) or error) from error
