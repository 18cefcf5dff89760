"""Image folders: photos/train/CLASS/IMAGE.jpg, or photos/CLASS/IMAGE.jpg, as an image-classification set.

There may also be folders validation/ (or val/) and test/. Without any of the three, all images are train. The
classes are the names of the folders in train. The rows are sorted by class and file name. Links are followed,
and hidden files are ignored (`files.is_hidden`). Other files that are not read are counted and reported.
"""

import difflib
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from dl.data.images.disk_dataset import DEFAULT_IMAGE_SIZE, Stored, StoredSource, Unreadable
from dl.data.images.files import (
    SUFFIXES,
    images_below,
    is_image_name,
    list_folder,
    open_image,
    read_pixels,
    upright_size,
)
from dl.data.tfds import folders
from dl.errors import UserError
from dl.system.text import printable

_SPLIT_FOLDERS = {"train": ("train",), "validation": ("validation", "val"), "test": ("test",)}
_NUM_CHANNELS = 3
_VERSION = "1.0.0"  # a folder has no version
_MANY_NAMES = 10


@dataclass(frozen=True, kw_only=True)
class ImageFolder(Stored):
    """A folder of images by class. Each file is a shard with one example."""

    origin: ClassVar[str] = "the image folder"
    many_examples: ClassVar[int] = 500

    def damaged(self, where: Path | str, reason: object) -> UserError:
        return Unreadable(where, reason)


def describe(dataset: str, image_size: int | None = None) -> ImageFolder:
    """Lists the folder and reads the headers of its images, until two differ in size.

    All images are converted to RGB, including grey ones.

    Args:
      dataset: path of the folder. `~` means the home folder.
      image_size: side of the square that images of varying size are cropped and resized to, in pixels. `None`
        means 96.

    Raises:
      UserError: the folder does not exist or does not hold images by class, or a class of validation or test
        is not in train.
    """
    folder = _existing(Path(os.path.abspath(os.path.expanduser(dataset))))
    split_folders = _split_folders(folder)
    listed = {split: _list_classes(path, folder) for split, path in split_folders.items()}
    class_names = tuple(listed["train"])
    for split, classes in listed.items():
        for name in classes:
            if name not in class_names:
                raise _unknown_class(name, split, class_names, folder)
    shards = {
        split: {path: 1 for paths in classes.values() for path in paths} for split, classes in listed.items()
    }
    passed_over = _PassedOver(folder)
    for split, path in split_folders.items():
        passed_over.add_split(path, listed[split])
    if split_folders["train"] != folder:
        passed_over.add_folders(set(list_folder(folder)[0]) - {path.name for path in split_folders.values()})
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
        passed_over=str(passed_over),
    )


class FileSource(StoredSource):
    """The images of one split of an image folder. Several threads read and decode them at every access."""

    def __init__(self, folder: ImageFolder, split: str, rows: np.ndarray | None = None):
        """Selects the rows `rows` of `split` in that order, or all rows if None. Nothing is read yet."""
        super().__init__(folder, split, rows)
        self._folder = folder
        self._paths = list(folder.shards[split])
        self._label_of = {name: label for label, name in enumerate(folder.class_names)}
        self._pool = ThreadPoolExecutor(thread_name_prefix="decode")  # starts threads when they are needed

    def labels(self) -> np.ndarray:
        labels = [self._label_of[path.parent.name] for path in self._paths]
        return np.array(labels, np.int32)[self._rows]

    def _examples(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, int] | UserError]:
        return self._pool.map(self._decode, [self._paths[row] for row in rows])

    def _decode(self, path: Path) -> tuple[np.ndarray, int] | UserError:
        folder = self._folder
        try:
            pixels = read_pixels(path, folder.image_shape, folder.is_resized, folder.is_fast)
        except Unreadable as error:
            return error
        if pixels.shape != folder.image_shape:
            return Unreadable(path, f"its size has changed from {folder.image_shape} to {pixels.shape}")
        return pixels, self._label_of[path.parent.name]


def _existing(folder: Path) -> Path:
    if os.path.isdir(folder):  # Unlike `Path.is_dir`, this never raises an error.
        if os.path.exists(folder / "dataset_info.json") or folders.versions(folder):
            raise UserError(
                f"{folder} holds a set that TFDS prepared, not images by class: give its NAME or "
                "NAME/CONFIG, and set --data-dir (TFDS_DATA_DIR) to the folder that contains NAME"
            )
        return folder
    if os.path.exists(folder):
        raise UserError(f"{folder} is a file: {_expected(folder.with_suffix(''))}")
    beside = list_folder(folder.parent)[0] if os.path.isdir(folder.parent) else []
    near = difflib.get_close_matches(folder.name, beside, n=1)
    hint = f"did you mean {folder.parent / near[0]}?" if near else _expected(folder)
    raise UserError(f"there is no folder {folder}: {hint}")


def _expected(folder: Path) -> str:
    layouts = f"{folder}/train/CLASS/IMAGE.jpg or {folder}/CLASS/IMAGE.jpg"
    return f"expected a folder with images by class, as in {layouts}"


def _split_folders(folder: Path) -> dict[str, Path]:
    """Returns the folder of each split. If there are no such folders, train is the folder itself."""
    held = list_folder(folder)[0]
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
    names = list_folder(split_folder)[0]
    if not names:
        wanted = _expected(folder) if split_folder == folder else f"expected {split_folder}/CLASS/IMAGE.jpg"
        raise UserError(f"{split_folder} has no folders of classes: {wanted}")
    classes = {}
    for name in names:
        deeper, all_files = list_folder(split_folder / name)
        files = [file for file in all_files if is_image_name(file)]
        if not files:
            hint = "fill it or remove it"
            if deeper:
                hint = f"its subfolders {_some(deeper)} are not read; if it is the data set, give its path"
            raise UserError(
                f"{split_folder / name} holds no images (no file ends in {', '.join(SUFFIXES)}): "
                f"expected {split_folder}/CLASS/IMAGE.jpg; {hint}"
            )
        classes[name] = [split_folder / name / file for file in files]
    return classes


def _unknown_class(name: str, split: str, class_names: tuple[str, ...], folder: Path) -> UserError:
    near = difflib.get_close_matches(name, class_names, n=1)
    hint = f"rename it (to {near[0]}?)" if near else f"rename it (train has {_some(class_names)})"
    return UserError(
        f"the class {name} of the {split} split is not in {folder / 'train'}: {hint} or remove it"
    )


def _some(names: Sequence[str]) -> str:
    return printable(", ".join(names[:_MANY_NAMES])) + (", …" if len(names) > _MANY_NAMES else "")


def _common_size(paths: Iterable[Path]) -> tuple[int, int] | None:
    """Returns the height and width of all images after turning them upright, or None if two differ.

    Images that cannot be opened are ignored here. They are reported together when all images are read.
    """
    common = None
    for path in paths:
        try:
            with open_image(path) as image:
                size = upright_size(image)
        except Unreadable:
            continue
        if common not in (None, size):
            return None
        common = size
    return common


class _PassedOver:
    """A count of the files in an image folder that are not read."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._endings: Counter[str] = Counter()
        self._misplaced: dict[str, list[Path]] = {"in deeper folders": [], "beside the class folders": []}
        self._folders: list[str] = []

    def add_split(self, split_folder: Path, class_names: Iterable[str]) -> None:
        """Counts the files in the folder of a split that are not read."""
        beside = [split_folder / name for name in list_folder(split_folder)[1] if is_image_name(name)]
        self._misplaced["beside the class folders"] += beside
        for name in class_names:
            deeper, files = list_folder(split_folder / name)
            self._endings.update(Path(f).suffix.lower() or f for f in files if not is_image_name(f))
            for below in deeper:
                self._misplaced["in deeper folders"] += images_below(split_folder / name / below)

    def add_folders(self, names: Iterable[str]) -> None:
        """Adds folders that are not splits."""
        self._folders += names

    def __str__(self) -> str:
        """Returns a description; empty if all files are read."""
        parts = []
        if self._endings:
            listed = _some([f"{ending} {count}" for ending, count in self._endings.most_common()])
            parts.append(f"{self._endings.total()} files with other endings ({listed})")
        for where, paths in self._misplaced.items():
            if paths:
                example = printable(paths[0].relative_to(self._folder))
                parts.append(f"{len(paths)} images {where} (such as {example})")
        if self._folders:
            parts.append(f"the folders {_some(self._folders)}, which are not splits")
        return f"not read: {'; '.join(parts)}" if parts else ""
