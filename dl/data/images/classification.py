"""Data sets for image classification, by name or folder, with the same rule for all splits."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from dl.data.carve import split_rows
from dl.data.images import fast_decoding
from dl.data.images import folder as image_folder
from dl.data.images.decoding import resized, to_unit_range
from dl.data.images.loading import Found, Loaded, load
from dl.data.images.prepared import describe
from dl.data.images.records import RecordSource
from dl.data.recorded import Recorded, remembered, sources_of
from dl.data.steps import CountsSteps
from dl.data.tfds import folders
from dl.data.tfds.find import find_or_prepare, names_path
from dl.errors import UserError
from dl.types import Identity, Preprocess, Source

__all__ = ["ImageClassification", "image_classification", "split_rows"]

# Notices for data sets whose name may be misleading. They are shown beside every result.
_CAVEATS = {
    "cifar10_jpeg": "CIFAR-10 with its images encoded again as JPEG: not comparable with published results.",
}


def image_classification(
    dataset: str = "auto",
    *,
    auto: str | Sequence[str] = "mnist",
    image_size: int | None = None,
    validation_fraction: float = 0.1,
    max_resident_bytes: int = 4 * 2**30,
    skip_unreadable: bool = False,
    fast_decoding: bool = False,
    data_dir: str | Path | None = None,
) -> "ImageClassification":
    """Returns a data set for image classification, in the format of TFDS or from a folder of images.

    Nothing is read yet. The splits are the official train, validation and test. Without an official
    validation split, `validation_fraction` of train is used. Without a test split, the validation split is
    used as test. With neither of them, 20 % of train is the test split. Rows that are taken from train are
    stratified by label (`carve.split_rows`) and do not depend on the seed of an experiment.

    Args:
      dataset: NAME or NAME/CONFIG of a set in the data folder, optionally with :VERSION (default: the newest
        version), or the path of a folder with images by class (see `dl.data.images.folder`). A path starts
        with `.` or `~`, cannot be a name, or is a folder with a name that no set has. "auto" means the set
        `auto`, or the digits of scikit-learn if that set is neither prepared nor can be downloaded.
      auto: name of the set that "auto" means. If there are several, it is the first one that is prepared.
      image_size: side of the square that the model reads, in pixels. Images of varying size are cropped and
        resized to it when they are decoded (`None` means 96). Images of equal size are stored unchanged, and
        `preprocess` resizes them in each step (`None` means that they are not resized).
      validation_fraction: fraction of train that is used for validation, in (0, 1).
      max_resident_bytes: largest size of the decoded set in memory. A larger set is read from disk in
        batches.
      skip_unreadable: whether to leave out files of an image folder that cannot be read. `provenance` counts
        them. Otherwise one error names all of them. A large set is read completely for this.
      fast_decoding: whether photographs of varying size are decoded and resized faster, to slightly other
        pixels (`dl.data.images.fast_decoding`). It needs the extra `streaming`.
      data_dir: folder of prepared sets. `None` means that of `using_data_dir` at the time of this call, else
        `TFDS_DATA_DIR`, else `~/tensorflow_datasets`.

    Raises:
      UserError: an argument is not valid. Attributes of the result also raise it, if the set is missing,
        damaged, or not an image-classification set.
    """
    auto = (auto,) if isinstance(auto, str) else tuple(auto)
    for name in auto:
        folders.parse_request(name)
    if dataset != "auto" and not folders.is_path(dataset):
        folders.parse_request(dataset)
    if not 0 < validation_fraction < 1:
        raise UserError(
            f"validation_fraction={validation_fraction} is out of range; it must be more than 0 and less "
            "than 1"
        )
    if image_size is not None and image_size < 1:
        raise UserError(f"image_size={image_size} is out of range; it must be at least 1, or None")
    data = ImageClassification(
        dataset,
        auto,
        image_size,
        validation_fraction,
        max_resident_bytes,
        skip_unreadable,
        folders.data_dir_in_use() if data_dir is None else Path(data_dir),
        fast_decoding,
    )
    known = remembered(data.request, ("image", "label"), has_classes=True)
    return data if known is None else _Remembered(**vars(data), known=known)


@dataclass(frozen=True)
class ImageClassification(CountsSteps):
    """A data set for image classification, made by `image_classification`.

    Examples are {"image": uint8 (H, W, C), "label": int32 ()}. The data are read once, when an attribute
    first needs them.
    """

    dataset: str
    auto: tuple[str, ...]
    image_size: int | None
    validation_fraction: float
    max_resident_bytes: int
    skip_unreadable: bool = False
    data_dir: Path | None = None
    fast_decoding: bool = False

    @property
    def request(self) -> dict[str, Any]:
        """The arguments of `image_classification`, as a run records them."""
        names = ("dataset", "image_size", "validation_fraction", "skip_unreadable")
        fast = {"fast_decoding": True} if self.fast_decoding else {}
        return {"auto": list(self.auto), **{name: getattr(self, name) for name in names}, **fast}

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
        """Name of each class; "0", "1", … if the set has no names."""
        return self._found.stored.class_names

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of an image, (H, W, C)."""
        return self._found.stored.image_shape

    @property
    def preprocess(self) -> Preprocess:
        """Preprocessing to floats in [0, 1] and to `image_size`."""
        return to_unit_range if self.image_size is None else resized(self.image_size, self.image_size)

    @property
    def notice(self) -> str | None:
        """Warning for a reader, for example if other data are used than requested."""
        return self._found.notice

    @property
    def provenance(self) -> str:
        origin = "the decoded cache" if self.from_cache else self._found.stored.origin
        height, width, channels = self.image_shape
        made_equal = ", cropped and resized" if self._found.stored.is_resized else ""
        made_equal += " by fast decoding" * (self._found.stored.is_resized and self.fast_decoding)
        parts = [
            f"{height}x{width}x{channels} images{made_equal}, {self.num_classes} classes",
            f"ready from {origin} in {self.load_seconds:.2f} s",
            self._found.stored.passed_over,
        ]
        if skipped := self._loaded.skipped:
            parts.append(f"skipped: {len(skipped)} files that cannot be read, such as {skipped[0]}")
        return "; ".join(part for part in parts if part)

    @property
    def load_seconds(self) -> float:
        """Time to prepare, decode or load the data, in seconds."""
        return self._found.seconds + self._loaded.seconds

    @property
    def from_cache(self) -> bool:
        """Whether the data came from the decoded cache."""
        return self._loaded.from_cache

    @cached_property
    def identity(self) -> Identity:
        stored, loaded = self._found.stored, self._loaded
        sizes = {name: len(source) for name, source in loaded.splits.items()}
        return Identity(stored.name, stored.version, loaded.checksum, sizes, loaded.split_rule)

    @cached_property
    def _found(self) -> Found:
        start = time.perf_counter()
        if self.fast_decoding:
            fast_decoding.check_installed()
        if self.dataset != "auto" and names_path(self.dataset, self.data_dir):
            images = replace(image_folder.describe(self.dataset, self.image_size), is_fast=self.fast_decoding)
            read = partial(image_folder.FileSource, images)
            return Found(None, images, read, None, time.perf_counter() - start)
        wanted = self.auto if self.dataset == "auto" else (self.dataset,)
        may_fall_back = self.dataset == "auto"
        root, folder, notice = find_or_prepare(wanted, may_fall_back, self.data_dir)
        prepared = replace(describe(folder, self.image_size), is_fast=self.fast_decoding)
        notice = notice or _CAVEATS.get(prepared.name)
        return Found(root, prepared, partial(RecordSource, prepared), notice, time.perf_counter() - start)

    @cached_property
    def _loaded(self) -> Loaded:
        return load(self._found, self.validation_fraction, self.max_resident_bytes, self.skip_unreadable)


@dataclass(frozen=True)
class _Remembered(ImageClassification):
    """A data set described by the record of a run. Only examples are read from the set itself."""

    known: Recorded = field(kw_only=True)

    @property
    def evaluations(self) -> dict[str, Source]:
        return {name: source for name, source in self._loaded.splits.items() if name != "train"}

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.known.class_names

    @property
    def image_shape(self) -> tuple[int, int, int]:
        height, width, channels = self.known.spec["image"].shape
        return height, width, channels

    @property
    def notice(self) -> str | None:
        return self.known.notice

    @property
    def provenance(self) -> str:
        return "as the run recorded it"

    @property
    def load_seconds(self) -> float:
        return 0.0

    @property
    def identity(self) -> Identity:
        return self.known.identity

    @cached_property
    def _loaded(self) -> Loaded:
        options = {f.name: getattr(self, f.name) for f in fields(ImageClassification)}
        itself = ImageClassification(**options)
        splits = sources_of(
            self.known, lambda: (itself.identity, {"train": itself.train, **itself.evaluations})
        )
        return Loaded(splits, self.identity.checksum, self.identity.split_rule, False, (), 0.0)
