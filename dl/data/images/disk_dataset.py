"""Stored sets: what is known of images that lie on disk, and the source that decodes them at every access."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import jax
import numpy as np

from dl.data.source import chunks
from dl.errors import UserError
from dl.system.text import printable

if TYPE_CHECKING:
    from PIL import Image

SPLITS = ("train", "validation", "test")
DEFAULT_IMAGE_SIZE = 96

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # Pillow's name for so many channels
_MANY_FILES = 10  # that one message names


class Unreadable(UserError):
    """A file that cannot be read as an image."""

    def __init__(self, path: Path | str, reason: object):
        self.path, self.reason = printable(path), printable(" ".join(str(reason).split()))[:300]
        super().__init__(
            f"{self.path} cannot be read as an image ({self.reason}): replace it or take it out of the folder"
        )


def several(errors: Sequence[UserError]) -> UserError:
    """Returns one error for all files that cannot be read; the same line as its own for one."""
    unreadable = [error for error in errors if isinstance(error, Unreadable)]
    if len(unreadable) < max(2, len(errors)):
        return errors[0]
    named = ", ".join(f"{error.path} ({error.reason})" for error in unreadable[:_MANY_FILES])
    more = f" and {len(unreadable) - _MANY_FILES} more" if len(unreadable) > _MANY_FILES else ""
    return UserError(
        f"{len(unreadable)} files cannot be read as images: {named}{more}: replace them, take them out of "
        "the folder, or leave them out by image_classification(..., skip_unreadable=True)"
    )


@dataclass(frozen=True, kw_only=True)
class Stored(ABC):
    """One image-classification set on disk.

    Attributes:
      origin: what the set is read from, in words.
      many_examples: from so many on, decoding them all takes seconds.
      folder: that it lies in.
      name: with its config, as in "colours/dark".
      image_shape: (H, W, C) of an example as it is handed out.
      is_resized: whether the stored images vary in size and are cropped and resized to that.
      class_names: one a class.
      shards: of each official split (train, validation, test): path -> number of examples.
      digest: SHA-256 of what describes the set.
      passed_over: what lies there and is not read, in words.
    """

    origin: ClassVar[str]
    many_examples: ClassVar[int]

    folder: Path
    name: str
    version: str
    image_shape: tuple[int, int, int]
    is_resized: bool
    class_names: tuple[str, ...]
    shards: Mapping[str, Mapping[Path, int]]
    digest: str
    passed_over: str = ""

    @property
    def sizes(self) -> dict[str, int]:
        return {split: sum(shards.values()) for split, shards in self.shards.items()}

    @abstractmethod
    def damaged(self, where: Path | str, reason: object) -> UserError:
        """The error for a set that cannot be read; `where` names the culprit."""


class StoredSource(ABC):
    """A `Source` that reads and decodes at every access: for sets too large to hold in memory.

    Attributes:
      spec: "image" uint8 (H, W, C) and "label" int32 ().
      num_classes: labels are below it, or reading them is an error.
    """

    def __init__(self, stored: Stored, split: str, rows: np.ndarray | None = None):
        """`rows` of `split` (all if None) are the examples, in that order; nothing is read yet."""
        self._image_shape = stored.image_shape
        self.num_classes = len(stored.class_names)
        self._rows = np.arange(stored.sizes[split]) if rows is None else rows

    @property
    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {
            "image": jax.ShapeDtypeStruct(self._image_shape, np.uint8),
            "label": jax.ShapeDtypeStruct((), np.int32),
        }

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Reads the rows `indices`.

        Raises:
          UserError: if a file is damaged, an image cannot be decoded, or a label is out of range.
        """
        examples, errors = self._read(indices)
        if errors:
            raise several(list(errors.values()))
        return examples

    def decode_all(self) -> tuple[dict[str, np.ndarray], dict[int, UserError]]:
        """Reads every row.

        Returns:
          The examples, and what is wrong with each row that cannot be read, whose example is zeros.
        """
        images = np.empty((len(self), *self._image_shape), np.uint8)
        labels = np.empty(len(self), np.int32)
        errors = {}
        for rows in chunks(len(self)):
            examples, wrong = self._read(rows)
            images[rows], labels[rows] = examples["image"], examples["label"]
            errors.update(wrong)
        return {"image": images, "label": labels}, errors

    def look_through(self) -> dict[int, UserError]:
        """Reads every row and keeps none; returns what is wrong with each that cannot be read."""
        return {row: error for rows in chunks(len(self)) for row, error in self._read(rows)[1].items()}

    @abstractmethod
    def labels(self) -> np.ndarray:
        """Returns the label of every row, int32, without decoding an image."""

    @abstractmethod
    def _examples(self, rows: np.ndarray) -> Iterable[tuple[np.ndarray, int] | UserError]:
        """The image and the label of each of the split's `rows`, in that order, or what is wrong with it."""

    def _read(self, indices: np.ndarray) -> tuple[dict[str, np.ndarray], dict[int, UserError]]:
        rows = self._rows[indices]
        images = np.zeros((len(rows), *self._image_shape), np.uint8)
        labels = np.zeros(len(rows), np.int32)
        errors = {}
        for at, example in enumerate(self._examples(rows)):
            if isinstance(example, UserError):
                errors[int(indices[at])] = example
            else:
                images[at], labels[at] = example
        return {"image": images, "label": labels}, errors


def to_pixels(image: "Image.Image", stored: Stored) -> np.ndarray:
    """An image as it is handed out: (H, W, C) uint8, cropped and resized only if sizes vary."""
    return fit_pixels(image, stored.image_shape, stored.is_resized)


def fit_pixels(image: "Image.Image", image_shape: tuple[int, int, int], is_resized: bool) -> np.ndarray:
    """An image with the channels of `image_shape` and, if `is_resized`, its middle in that height and width.

    Transparency is dropped where C has no place for it; of 16 bits the upper 8 are kept.

    Raises:
      ValueError: numbers of 32 bits, of which nobody knows what is white.
    """
    from PIL import Image

    height, width, channels = image_shape
    if image.mode.startswith("I;16"):  # which Pillow would clip at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "I" and image.format in ("PNG", "PPM"):  # 16 bits in a wider type
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("its pixels are numbers of 32 bits; store 8 or 16")
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # Pillow warns of any other way
    if image.mode != _MODES[channels]:
        image = image.convert(_MODES[channels])
    if is_resized:
        scale = min(image.width / width, image.height / height)
        wide, high = round(width * scale), round(height * scale)
        left, top = (image.width - wide) // 2, (image.height - high) // 2
        middle = image.crop((left, top, left + wide, top + high))
        image = middle.resize((width, height), Image.Resampling.BILINEAR)
    array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array
