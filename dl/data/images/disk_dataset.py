"""Data sets of images on disk: their description, and a source that decodes images at every access."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import jax
import numpy as np

from dl.data.images import fast_decoding
from dl.data.images.centre import centre_box
from dl.data.source import chunks
from dl.errors import UserError
from dl.system.text import printable

if TYPE_CHECKING:
    from PIL import Image

DEFAULT_IMAGE_SIZE = 96

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # Pillow's mode by number of channels
_MANY_FILES = 10  # most files that one message names


class Unreadable(UserError):
    """A file that cannot be read as an image."""

    def __init__(self, path: Path | str, reason: object):
        self.path, self.reason = printable(path), printable(" ".join(str(reason).split()))[:300]
        super().__init__(
            f"{self.path} cannot be read as an image ({self.reason}): replace it or remove it from the folder"
        )


def several(errors: Sequence[UserError]) -> UserError:
    """Returns one error for all files that cannot be read."""
    unreadable = [error for error in errors if isinstance(error, Unreadable)]
    if len(unreadable) < max(2, len(errors)):
        return errors[0]
    named = ", ".join(f"{error.path} ({error.reason})" for error in unreadable[:_MANY_FILES])
    more = f" and {len(unreadable) - _MANY_FILES} more" if len(unreadable) > _MANY_FILES else ""
    return UserError(
        f"{len(unreadable)} files cannot be read as images: {named}{more}: replace them, remove them from "
        "the folder, or skip them by image_classification(..., skip_unreadable=True)"
    )


@dataclass(frozen=True, kw_only=True)
class Stored(ABC):
    """The description of an image-classification set on disk.

    Attributes:
      origin: description of where the set is read from, for `provenance`.
      many_examples: number of examples from which decoding takes seconds, so that a message is shown.
      folder: folder of the set.
      name: name of the set with its config, such as "colours/dark".
      version: version of the set.
      image_shape: shape (H, W, C) of the image of an example.
      is_resized: whether the stored images vary in size and are cropped and resized to that shape.
      class_names: name of each class.
      shards: for each official split (train, validation, test), number of examples by path of a shard.
      digest: SHA-256 of the description of the set.
      passed_over: description of the files that are not read, for `provenance`.
      is_fast: whether images are decoded as `fast_decoding` describes.
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
    is_fast: bool = False

    @property
    def sizes(self) -> dict[str, int]:
        return {split: sum(shards.values()) for split, shards in self.shards.items()}

    @abstractmethod
    def damaged(self, where: Path | str, reason: object) -> UserError:
        """Returns the error for a set that cannot be read. `where` is the damaged file or record."""


class StoredSource(ABC):
    """A `Source` that reads and decodes images at every access, for sets that do not fit into memory.

    Attributes:
      spec: "image" uint8 (H, W, C) and "label" int32 ().
      num_classes: number of classes. Reading a label that is not below it is an error.
    """

    def __init__(self, stored: Stored, split: str, rows: np.ndarray | None = None):
        """Selects the rows `rows` of `split` in that order, or all rows if None. Nothing is read yet."""
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
          UserError: a file is damaged, an image cannot be decoded, or a label is out of range.
        """
        examples, errors = self._read(indices)
        if errors:
            raise several(list(errors.values()))
        return examples

    def decode_all(self) -> tuple[dict[str, np.ndarray], dict[int, UserError]]:
        """Reads every row.

        Returns:
          The examples, and the errors by row. The example of a row with an error is zeros.
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
        """Reads every row without keeping it. Returns the errors by row."""
        return {row: error for rows in chunks(len(self)) for row, error in self._read(rows)[1].items()}

    @abstractmethod
    def labels(self) -> np.ndarray:
        """Returns the label of every row, int32, without decoding an image."""

    @abstractmethod
    def _examples(self, rows: np.ndarray) -> Iterable[tuple[np.ndarray, int] | UserError]:
        """Returns the image and the label of each of the split's `rows`, in that order, or the error."""

    def _read(self, indices: np.ndarray) -> tuple[dict[str, np.ndarray], dict[int, UserError]]:
        rows = self._rows[indices]
        images = np.zeros((len(rows), *self._image_shape), np.uint8)
        labels = np.zeros(len(rows), np.int32)
        errors = {}
        for position, example in enumerate(self._examples(rows)):
            if isinstance(example, UserError):
                errors[int(indices[position])] = example
            else:
                images[position], labels[position] = example
        return {"image": images, "label": labels}, errors


def to_pixels(image: "Image.Image", stored: Stored) -> np.ndarray:
    """Returns an image as uint8 (H, W, C). It is cropped and resized only if the stored sizes vary."""
    return fit_pixels(image, stored.image_shape, stored.is_resized, stored.is_fast)


def fit_pixels(
    image: "Image.Image", image_shape: tuple[int, int, int], is_resized: bool, is_fast: bool = False
) -> np.ndarray:
    """Returns an image with the channels of `image_shape`, as uint8.

    If `is_resized`, its centre is cropped and resized to the height and width of `image_shape`. Transparency
    is dropped if C does not include it. Of 16 bits the upper 8 are kept. If `is_fast`,
    `fast_decoding` resizes.

    Raises:
      ValueError: the pixels have 32 bits, for which the value of white is not known.
    """
    from PIL import Image

    height, width, channels = image_shape
    if image.mode.startswith("I;16"):  # Pillow would clip these pixels at 255.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "I" and image.format in ("PNG", "PPM"):  # 16 bits in a wider type
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits; store 8 or 16 bits")
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # Pillow warns about any other conversion.
    if image.mode != _MODES[channels]:
        image = image.convert(_MODES[channels])
    if is_resized:
        middle = image.crop(centre_box(image.width, image.height, width, height))
        if is_fast:
            image = fast_decoding.resize(middle, width, height)
        else:
            image = middle.resize((width, height), Image.Resampling.BILINEAR)
    array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array
