"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), prepared like in TFDS but without TensorFlow.

An archive holds files of rows. A row is the labels, one byte each, and then a 32x32 image, channel by
channel.
"""

import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.image_classification import cifar

from dl.data.tfds import download as raw_files
from dl.errors import UserError

_SHAPE_CHW = (3, 32, 32)


class _BinaryWithoutTensorFlow:
    """Overrides what needs TensorFlow in TFDS's builders of CIFAR's binary archives."""

    info: Any
    official: Any  # the builder of TFDS, which holds the checksums
    _cifar_info: cifar.CifarInfo

    @classmethod
    def raw_urls(cls) -> dict[str, str]:
        return {info.filename: url for url, info in cls.official.url_infos.items()}

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        (path,) = raw_files.download(dl_manager, self.raw_urls()).values()
        parts = self._cifar_info
        names = [*parts.label_files, *parts.train_files, *parts.test_files]
        content = _read_archive(path, parts.prefix, names)
        try:
            for key, file in zip(parts.label_keys, parts.label_files, strict=True):
                class_names = content[file].decode().split("\n")
                self.info.features[key].names = [name for name in class_names if name]
            files = {"train": parts.train_files, "test": parts.test_files}
            rows = {
                split: _as_rows([content[file] for file in of_split], len(parts.label_keys))
                for split, of_split in files.items()
            }
            for split, split_rows in rows.items():
                for number, key in enumerate(parts.label_keys):
                    self._check_labels(split, key, split_rows[:, number])
        except ValueError as error:
            raise _damaged(path, error) from error
        return {split: self._generate_examples(split, split_rows) for split, split_rows in rows.items()}

    def _check_labels(self, split: str, key: str, labels: np.ndarray) -> None:
        num_classes = self.info.features[key].num_classes
        if labels.size and labels.max() >= num_classes:
            raise ValueError(f"a {key} of {split} is {labels.max()}, expected 0 to {num_classes - 1}")

    def _generate_examples(self, split: str, rows: np.ndarray) -> Iterator[tuple[int, Any]]:
        keys = self._cifar_info.label_keys
        for index, row in enumerate(rows):
            labels = dict(zip(keys, row[: len(keys)].tolist(), strict=True))
            image_HWC = row[len(keys) :].reshape(_SHAPE_CHW).transpose(1, 2, 0)
            # TFDS shuffles examples by the index. The id is a feature.
            yield index, {"id": f"{split}_{index:05d}", "image": Image.fromarray(image_HWC), **labels}


with tfds.core.registered.skip_registration():  # the names stay TFDS's

    class Cifar10(_BinaryWithoutTensorFlow, cifar.Cifar10):
        """TFDS's `cifar10`."""

        name = "cifar10"
        official = cifar.Cifar10

    class Cifar100(_BinaryWithoutTensorFlow, cifar.Cifar100):
        """TFDS's `cifar100`."""

        name = "cifar100"
        official = cifar.Cifar100


def _read_archive(path: Path, prefix: str, names: Sequence[str]) -> dict[str, bytes]:
    """Returns the content of each of the files `prefix` + name of a gzip-packed tar archive."""
    content = {}
    try:
        with tarfile.open(path, "r|gz") as archive:  # One pass, because going back would unpack it again.
            for member in archive:
                if (file := archive.extractfile(member)) and member.name.startswith(prefix):
                    content[member.name.removeprefix(prefix)] = file.read()
        if missing := [name for name in names if name not in content]:
            raise ValueError(f"{prefix}{missing[0]} is missing")
    except (OSError, EOFError, zlib.error, tarfile.TarError, ValueError) as error:
        raise _damaged(path, error) from error
    return content


def _as_rows(files: Sequence[bytes], num_labels: int) -> np.ndarray:
    row_bytes = num_labels + int(np.prod(_SHAPE_CHW))
    for file in files:
        if not file or len(file) % row_bytes:
            raise ValueError(f"a file of {len(file)} bytes, expected rows of {row_bytes}")
    return np.frombuffer(b"".join(files), np.uint8).reshape(-1, row_bytes)


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is not an archive of CIFAR ({error}): delete it and download it again")
