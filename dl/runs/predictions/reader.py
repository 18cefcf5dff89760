"""Reads the .npz file of predictions. The file may be damaged, have other content, or be malicious."""

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dl.errors import UserError
from dl.runs.predictions.kept import (
    ClassificationOutcomes,
    Kept,
    MultiLabel,
    Outputs,
    Predictions,
    Reconstruction,
    Regression,
    check_range,
)
from dl.runs.predictions.kept_tokens import LanguageModel, MaskedLanguageModel, SequenceToSequence, Tagging

MAX_FILE_BYTES = 512 * 2**20  # limit for the memory; files that `Kept.save` writes are much smaller
MAX_EXAMPLES = 2**40

KINDS: Mapping[str, type[Kept]] = {
    one.kind: one
    for one in (
        *(Predictions, ClassificationOutcomes, MultiLabel, Regression, Reconstruction, Outputs),
        *(LanguageModel, MaskedLanguageModel, SequenceToSequence, Tagging),
    )
}

_COMMON = {"split": ("U", ""), "num_examples": ("iu", ""), "index": ("iu", "N")}
_OF_METRICS = {"metric_names": ("U", "Q"), "example_metrics": ("f", "MQ2")}


def read_predictions(path: Path) -> Kept:
    """Returns what `Kept.save` wrote. A file without a kind is a classification.

    Raises:
      UserError: the file is damaged, or does not hold predictions.
    """
    try:
        return _read(path)
    except Exception as error:  # NumPy, zipfile and zlib raise different errors
        brief = (f"{type(error).__name__}: {error}".splitlines() or [""])[0][:200]
        raise UserError(f"{path} does not hold predictions ({brief}); train the run again") from None


def _read(path: Path) -> Kept:
    if not path.is_file():
        raise ValueError("it is not a regular file")
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        found = {}
        left = MAX_FILE_BYTES
        for entry in archive.infolist():
            name = entry.filename.removesuffix(".npy")
            if name in found:
                raise ValueError(f"it has two arrays {name}")
            found[name] = _read_array(archive, entry, left)
            left -= entry.file_size
    kind = str(found.pop("kind", Predictions.kind))
    if kind not in KINDS:
        raise ValueError(f"its kind {kind[:40]!r} is not one of {', '.join(KINDS)}")
    cls = KINDS[kind]
    layout = {**_COMMON, **cls.layout, **(_OF_METRICS if "metric_names" in found else {})}
    if missing := layout.keys() - found.keys():
        raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    num_examples = int(found["num_examples"]) if found["num_examples"].ndim == 0 else -1
    sizes = {"M": num_examples, "2": 2}
    for name, (dtypes, dimensions) in layout.items():
        _check_form(name, found[name], dtypes, dimensions, sizes)
    index = found["index"]
    if not len(index) <= num_examples <= MAX_EXAMPLES or not len(index):
        raise ValueError(f"it has {len(index)} of {num_examples} examples")
    check_range("index", index, num_examples)
    if (np.diff(index.astype(np.int64)) <= 0).any():
        raise ValueError("its index does not increase")
    kept = cls(**{name: _plain(found[name]) for name in layout})
    kept.check()
    return kept


def _read_array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, max_bytes: int) -> np.ndarray:
    """Returns one array. It is allocated only if its header fits the size of the entry."""
    name = entry.filename
    if entry.file_size > max_bytes:
        raise ValueError(f"{name} claims {entry.file_size:,} bytes")
    with archive.open(entry) as member:
        version = np.lib.format.read_magic(member)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read_header is None:
            raise ValueError(f"{name} has the format {version}")
        shape, is_fortran, dtype = read_header(member)
        if dtype.hasobject or dtype.kind not in "biufU" or not dtype.isnative:
            raise ValueError(f"{name} has the dtype {dtype}")
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != entry.file_size - member.tell():
            raise ValueError(f"{name} claims the shape {shape} in {entry.file_size:,} bytes")
        content = member.read()  # reads to the end, where the checksum is compared
    array = np.frombuffer(content, dtype)
    return array.reshape(shape[::-1]).T if is_fortran else array.reshape(shape)


def _check_form(name: str, array: np.ndarray, dtypes: str, dimensions: str, sizes: dict[str, int]) -> None:
    """Raises ValueError if dtype or shape are wrong; records the sizes of new dimension letters."""
    if array.dtype.kind not in dtypes:
        raise ValueError(f"{name} has the dtype {array.dtype}")
    letters = dimensions.rstrip("*")
    if array.ndim < len(letters) or (array.ndim > len(letters) and letters == dimensions):
        raise ValueError(f"{name} has the shape {array.shape}")
    for letter, size in zip(letters, array.shape, strict=False):
        if sizes.setdefault(letter, size) != size:
            raise ValueError(f"its arrays differ in length: {name} has the shape {array.shape}")


def _plain(array: np.ndarray) -> Any:
    if array.ndim == 0:
        return str(array) if array.dtype.kind == "U" else int(array)
    return tuple(map(str, array)) if array.dtype.kind == "U" else array
