"""Stored sets: what is known of images that lie on disk, and the source that decodes them at every access."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import jax
import numpy as np

from dl.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

SPLITS = ("train", "validation", "test")
DEFAULT_IMAGE_SIZE = 96

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # Pillow's name for so many channels
_CHUNK = 1024  # examples in memory twice while a whole split is decoded


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
    """

    def __init__(self, stored: Stored, split: str, rows: np.ndarray | None = None):
        """`rows` of `split` (all if None) are the examples, in that order; nothing is read yet."""
        self._image_shape = stored.image_shape
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
        rows = self._rows[indices]
        images = np.empty((len(rows), *self._image_shape), np.uint8)
        labels = np.empty(len(rows), np.int32)
        for at, (image, label) in enumerate(self._examples(rows)):
            images[at], labels[at] = image, label
        return {"image": images, "label": labels}

    def decode_all(self) -> dict[str, np.ndarray]:
        """Reads every row."""
        images = np.empty((len(self), *self._image_shape), np.uint8)
        labels = np.empty(len(self), np.int32)
        for start in range(0, len(self), _CHUNK):
            chunk = slice(start, min(start + _CHUNK, len(self)))
            rows = self[np.arange(chunk.start, chunk.stop)]
            images[chunk], labels[chunk] = rows["image"], rows["label"]
        return {"image": images, "label": labels}

    @abstractmethod
    def _examples(self, rows: np.ndarray) -> Iterable[tuple[np.ndarray, int]]:
        """The image and the label of each of the split's `rows`, in that order."""


def to_pixels(image: "Image.Image", stored: Stored) -> np.ndarray:
    """An image as it is handed out: (H, W, C) uint8, cropped and resized only if sizes vary."""
    return fit_pixels(image, stored.image_shape, stored.is_resized)


def fit_pixels(image: "Image.Image", image_shape: tuple[int, int, int], is_resized: bool) -> np.ndarray:
    """An image with the channels of `image_shape` and, if `is_resized`, its middle in that height and width.

    Transparency is dropped where C has no place for it; of 16 bits the upper 8 are kept.
    """
    from PIL import Image

    height, width, channels = image_shape
    if image.mode.startswith("I;16"):  # which Pillow would clip at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
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
