"""The catalogue: image-classification sets by name or folder, with one rule for splits."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from dl.data import cache, folders, image_folder
from dl.data.find import find_or_prepare, is_image_folder
from dl.data.order import random_order
from dl.data.prepared import describe
from dl.data.records import RecordSource
from dl.data.source import ArraySource, Source
from dl.data.splits import Identity
from dl.data.stored import Stored, StoredSource
from dl.errors import UserError

# What must stand beside every figure on a set that is not what its name may suggest.
_CAVEATS = {
    "cifar10_jpeg": "CIFAR-10 with its images encoded anew as JPEG: not comparable with published figures.",
}
_TEST_FRACTION = 0.2  # of a set that has but a train split
_SPLIT_KEY = (0, 2**63)  # apart from the keys of epochs, (seed, epoch)
_LABEL_BYTES = 4


@dataclass(frozen=True)
class _Found:
    root: Path | None  # None for a folder that is not to be written
    stored: Stored
    source: Callable[[str, np.ndarray | None], StoredSource]  # of a split and its rows
    notice: str | None
    seconds: float


@dataclass(frozen=True)
class _Loaded:
    splits: Mapping[str, Source]
    checksum: str
    from_cache: bool
    seconds: float


def image_classification(
    dataset: str = "auto",
    *,
    auto: str | Sequence[str] = "mnist",
    image_size: int | None = None,
    validation_fraction: float = 0.1,
    max_resident_bytes: int = 4 * 2**30,
) -> "ImageClassification":
    """Names an image-classification set, in TFDS's format or a folder of images; nothing is read yet.

    Splits: the official train, validation and test. Without an official validation split,
    `validation_fraction` of train is taken; without a test split, the validation split becomes
    the test split; with neither, 20 % of train is the test split. What is taken does not depend on
    the experiment's seed.

    Args:
      dataset: NAME, NAME/CONFIG or either with :VERSION, in the folder that `TFDS_DATA_DIR` names
        (default `~/tensorflow_datasets`); by default the newest version. Or the path of a folder with
        images by class (see `dl.data.image_folder`): whatever starts with `.` or `~` or cannot be a
        name, and a folder whose name is no set's. "auto" means `auto`, or scikit-learn's embedded
        digits where that is neither prepared nor to be had.
      auto: what "auto" wants; of several the first that is prepared.
      image_size: side of the square that images of VARYING size are cropped and resized to (96 if
        None); images of one size stay as stored.
      validation_fraction: of train, in (0, 1).
      max_resident_bytes: a set that is larger decoded is read from disk batch by batch.

    Raises:
      UserError: for an argument that means nothing. Attributes of the result raise it too, where
        the set is missing, damaged, or no image-classification set.
    """
    auto = (auto,) if isinstance(auto, str) else tuple(auto)
    for name in auto:
        folders.parse_request(name)
    if dataset != "auto" and not folders.is_path(dataset):
        folders.parse_request(dataset)
    if not 0 < validation_fraction < 1:
        raise UserError(f"validation_fraction={validation_fraction}: expected more than 0, under 1")
    if image_size is not None and image_size < 1:
        raise UserError(f"image_size={image_size}: expected at least 1, or None")
    return ImageClassification(dataset, auto, image_size, validation_fraction, max_resident_bytes)


@dataclass(frozen=True)
class ImageClassification:
    """An image-classification set; what an attribute needs is read once, when first asked for.

    Examples are {"image": uint8 (H, W, C), "label": int32 ()}. Made by `image_classification`.
    """

    dataset: str
    auto: tuple[str, ...]
    image_size: int | None
    validation_fraction: float
    max_resident_bytes: int

    @property
    def train(self) -> Source:
        return self._loaded.splits["train"]

    @property
    def validation(self) -> Source:
        return self._loaded.splits["validation"]

    @property
    def test(self) -> Source:
        return self._loaded.splits["test"]

    @property
    def evaluations(self) -> dict[str, Source]:
        return {"validation": self.validation, "test": self.test}

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def class_names(self) -> tuple[str, ...]:
        """One a class; "0", "1", … if the set names none."""
        return self._found.stored.class_names

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return self._found.stored.image_shape

    @property
    def notice(self) -> str | None:
        """What the user must know about the data used, if it is not the data wanted."""
        return self._found.notice

    @property
    def provenance(self) -> str:
        how = f"from {'the decoded cache' if self.from_cache else self._found.stored.origin}"
        height, width, channels = self.image_shape
        made_equal = ", cropped and resized" if self._found.stored.is_resized else ""
        return (
            f"{height}x{width}x{channels} images{made_equal}, {self.num_classes} classes; "
            f"ready {how} in {self.load_seconds:.2f} s"
        )

    @property
    def load_seconds(self) -> float:
        """How long it took to make the data ready: to prepare, decode or load it."""
        return self._found.seconds + self._loaded.seconds

    @property
    def from_cache(self) -> bool:
        """Whether the decoded cache served it."""
        return self._loaded.from_cache

    @cached_property
    def identity(self) -> Identity:
        stored, loaded = self._found.stored, self._loaded
        sizes = {name: len(source) for name, source in loaded.splits.items()}
        return Identity(stored.name, stored.version, loaded.checksum, sizes)

    @cached_property
    def _found(self) -> _Found:
        start = time.perf_counter()
        if self.dataset != "auto" and is_image_folder(self.dataset):
            images = image_folder.describe(self.dataset, self.image_size)
            read = partial(image_folder.FileSource, images)
            return _Found(None, images, read, None, time.perf_counter() - start)
        wanted = self.auto if self.dataset == "auto" else (self.dataset,)
        root, folder, notice = find_or_prepare(wanted, may_fall_back=self.dataset == "auto")
        prepared = describe(folder, self.image_size)
        notice = notice or _CAVEATS.get(prepared.name)
        return _Found(root, prepared, partial(RecordSource, prepared), notice, time.perf_counter() - start)

    @cached_property
    def _loaded(self) -> _Loaded:
        root, stored, source = self._found.root, self._found.stored, self._found.source
        start = time.perf_counter()
        rows = split_rows(stored.name, stored.sizes, self.validation_fraction)
        bytes_each = int(np.prod(stored.image_shape)) + _LABEL_BYTES
        if sum(stored.sizes.values()) * bytes_each > self.max_resident_bytes:
            sources = {name: source(split, r) for name, (split, r) in rows.items()}
            checksum = cache.description_checksum(stored)
            return _Loaded(sources, checksum, False, time.perf_counter() - start)
        key = cache.cache_key(stored)
        cached = cache.load(stored, root, key)
        if cached:
            arrays, checksum = cached
        else:
            if sum(stored.sizes.values()) > stored.many_examples:  # seconds of silence
                print(f"decoding {stored.name} once; the next start reads a cache ...", flush=True)
            arrays = {
                f"{split}/{feature}": array
                for split in stored.sizes
                for feature, array in source(split, None).decode_all().items()
            }
            checksum = cache.store(stored, root, key, arrays)
        splits = {}
        for name, (split, r) in rows.items():
            whole = ArraySource({f: arrays[f"{split}/{f}"] for f in ("image", "label")})
            splits[name] = whole if r is None else whole.take(r)
        return _Loaded(splits, checksum, cached is not None, time.perf_counter() - start)


def split_rows(
    name: str, sizes: Mapping[str, int], validation_fraction: float
) -> dict[str, tuple[str, np.ndarray | None]]:
    """Which rows of which official split make up train, validation and test.

    Args:
      name: of the set, for errors.
      sizes: of the official splits; "train" is among them.
      validation_fraction: of train (of what is left of it), where there is no validation split.

    Returns:
      By split as used: the official split, and its rows in increasing order (None means all).

    Raises:
      UserError: if a split would be empty.
    """
    official = {"train": "train", "validation": "validation", "test": "test"}
    if "test" not in sizes and "validation" in sizes:
        official = {"train": "train", "test": "validation"}
    counts: dict[str, int] = {}  # taken from train
    left = sizes["train"]
    if "test" not in sizes and "validation" not in sizes:
        counts["test"] = round(_TEST_FRACTION * left)
        left -= counts["test"]
    if not {"validation", "test"} <= sizes.keys():
        counts["validation"] = round(validation_fraction * left)
        left -= counts["validation"]
    result: dict[str, tuple[str, np.ndarray | None]] = {
        used: (split, None) for used, split in official.items() if split in sizes
    }
    if counts:
        order = random_order(sizes["train"], *_SPLIT_KEY)
        start = 0
        for used, count in counts.items():
            result[used] = ("train", np.sort(order[start : start + count]))
            start += count
        result["train"] = ("train", np.sort(order[start:]))
    for used, (split, rows) in result.items():
        if not (sizes[split] if rows is None else len(rows)):
            raise UserError(
                f"the {used} split of {name} would be empty (its official splits: {dict(sizes)}, "
                f"validation_fraction={validation_fraction}): choose another set or fraction"
            )
    return {used: result[used] for used in ("train", "validation", "test")}
