"""Loading of the splits of a data set on disk: decoded into memory, or read from disk in batches."""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dl.data.carve import check_sizes, split_rows, split_rule
from dl.data.images import cache
from dl.data.images.disk_dataset import Stored, StoredSource, Unreadable, several
from dl.data.images.records import RecordSource
from dl.data.source import ArraySource
from dl.errors import UserError
from dl.system.text import printable
from dl.types import Source

_LABEL_BYTES = 4


@dataclass(frozen=True)
class Found:
    """A data set that was found on disk.

    Attributes:
      root: data folder of the set. `None` means that its folder must not be written.
      stored: description of the set.
      source: function from a split and its rows (all if None) to a source.
      notice: warning for a reader; see `Splits`.
      seconds: time to find or prepare the set, in seconds.
    """

    root: Path | None
    stored: Stored
    source: Callable[[str, np.ndarray | None], StoredSource]
    notice: str | None
    seconds: float


@dataclass(frozen=True)
class Loaded:
    """The splits of a set.

    Attributes:
      splits: the splits by name.
      checksum: checksum of the content, or of the description of a set that is read from disk in batches.
      split_rule: description of how rows were drawn from train; see `Identity`.
      from_cache: whether the data came from the decoded cache.
      skipped: files that cannot be read and were left out, relative to the folder of the set.
      seconds: time to load the set, in seconds.
    """

    splits: Mapping[str, Source]
    checksum: str
    split_rule: str
    from_cache: bool
    skipped: Sequence[str]
    seconds: float


def load(found: Found, validation_fraction: float, max_resident_bytes: int, skip_unreadable: bool) -> Loaded:
    """Returns the loaded splits of a set. The arguments are those of `image_classification`.

    Raises:
      UserError: a split would be empty, or files cannot be read. One error names all unreadable image files.
    """
    stored, start = found.stored, time.perf_counter()
    check_sizes(stored.name, stored.sizes, validation_fraction)  # before the work
    bytes_all = sum(stored.sizes.values()) * (int(np.prod(stored.image_shape)) + _LABEL_BYTES)
    make_ready = _stream if bytes_all > max_resident_bytes else _decode
    made = make_ready(found, validation_fraction, skip_unreadable)
    return Loaded(*made, time.perf_counter() - start)


def _decode(
    found: Found, validation_fraction: float, skip_unreadable: bool
) -> tuple[dict[str, Source], str, str, bool, Sequence[str]]:
    """Returns splits in memory."""
    stored = found.stored
    key = cache.cache_key(stored) + ("-skipping" if skip_unreadable else "")
    cached = cache.load(stored, found.root, key)
    if cached:
        arrays, checksum = cached
    else:
        if sum(stored.sizes.values()) > stored.many_examples:  # Decoding takes seconds.
            _say(f"decoding {stored.name} once; the next start reads a cache ...")
        arrays = {}
        errors: list[UserError] = []
        for split in stored.sizes:
            examples, wrong = found.source(split, None).decode_all()
            for feature, array in examples.items():
                arrays[f"{split}/{feature}"] = np.delete(array, list(wrong), axis=0) if wrong else array
            errors += wrong.values()
        if errors:
            skipped = _skipped(stored, errors, skip_unreadable)
            arrays["skipped"] = np.frombuffer(json.dumps(skipped).encode(), np.uint8)
        checksum = cache.store(stored, found.root, key, arrays)
    skipped = json.loads(arrays.pop("skipped").tobytes()) if "skipped" in arrays else []
    if skipped:
        checksum = cache.checksum(arrays)  # The same set without those files has this checksum.
    sizes = {split: len(arrays[f"{split}/label"]) for split in stored.sizes}
    rows_of = split_rows(stored.name, sizes, validation_fraction, arrays["train/label"])
    splits: dict[str, Source] = {}
    for name, (split, rows) in rows_of.items():
        whole = ArraySource({f: arrays[f"{split}/{f}"] for f in ("image", "label")})
        splits[name] = whole if rows is None else whole.take(rows)
    rule = split_rule(sizes, validation_fraction, arrays["train/label"])
    return splits, checksum, rule, cached is not None, skipped


def _stream(
    found: Found, validation_fraction: float, skip_unreadable: bool
) -> tuple[dict[str, Source], str, str, bool, Sequence[str]]:
    """Returns splits that are read from disk in batches."""
    stored = found.stored
    kept = {split: np.arange(size) for split, size in stored.sizes.items()}
    checksum = cache.description_checksum(stored)
    errors: list[UserError] = []
    if skip_unreadable:
        _say(f"checking all images of {stored.name} for files that cannot be read ...")
        for split in kept:
            wrong = found.source(split, None).look_through()
            kept[split] = np.delete(kept[split], list(wrong))
            errors += wrong.values()
    skipped = _skipped(stored, errors, skip_unreadable)
    if skipped:
        checksum = hashlib.sha256(repr((checksum, skipped)).encode()).hexdigest()
    is_carved = not {"validation", "test"} <= stored.sizes.keys()
    labels = _train_labels(found)[kept["train"]] if is_carved else None
    sizes = {split: len(rows) for split, rows in kept.items()}
    rows_of = split_rows(stored.name, sizes, validation_fraction, labels)
    splits: dict[str, Source] = {
        name: found.source(split, kept[split] if rows is None else kept[split][rows])
        for name, (split, rows) in rows_of.items()
    }
    rule = split_rule(sizes, validation_fraction, labels)
    return splits, checksum, rule, False, skipped


def _train_labels(found: Found) -> np.ndarray:
    """Returns the labels of train, for stratified splits. Those of records are read once and then cached."""
    stored, source = found.stored, found.source("train", None)
    if not isinstance(source, RecordSource):
        return source.labels()
    key = cache.cache_key(stored)
    if cached := cache.load(stored, found.root, key, "labels"):
        return cached[0]["label"]
    _say(f"reading the labels of {stored.name} once ...")
    labels = source.labels()
    cache.store(stored, found.root, key, {"label": labels}, "labels")
    return labels


def _skipped(stored: Stored, errors: Sequence[UserError], skip_unreadable: bool) -> list[str]:
    """Returns the files that are left out. Raises one error for all of them unless `skip_unreadable`."""
    others = [error for error in errors if not isinstance(error, Unreadable)]
    if others or (errors and not skip_unreadable):
        raise several(others or errors)
    paths = [error.path for error in errors if isinstance(error, Unreadable)]
    return [os.path.relpath(path, printable(stored.folder)) for path in paths]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
