"""Builders of data sets that TFDS can prepare only with TensorFlow. They do not need TensorFlow.

The MNIST family and CIFAR are those of TFDS (same name, version, URLs, checksums and features), so that
`tfds.data_source(name, download=False)` reads the result too. `digits` is a part of scikit-learn, for
machines without a network. This module is imported only if a set must be prepared.
"""

import contextlib
import gzip
import logging
import os
import shutil
import struct
import sys
import tempfile
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import numpy as np
import requests
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.download import download_manager, downloader, util
from tensorflow_datasets.image_classification import mnist

from dl.data.carve import stratified
from dl.data.tfds import download as raw_files
from dl.data.tfds import folders
from dl.data.tfds.cifar import Cifar10, Cifar100
from dl.errors import UserError

RAW_FILES = {  # files of the MNIST family: split -> images, labels
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
_DIGITS_TEST_SIZE = 360
_MANY_BYTES = 100_000_000


class _IdxWithoutTensorFlow:
    """Overrides what needs TensorFlow in TFDS's builders of IDX files."""

    URL: str

    @classmethod
    def raw_urls(cls) -> dict[str, str]:
        return {name: urljoin(cls.URL, name) for pair in RAW_FILES.values() for name in pair}

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        paths = raw_files.download(dl_manager, self.raw_urls())
        return {
            split: self._generate_examples(paths[images], paths[labels])
            for split, (images, labels) in RAW_FILES.items()
        }

    def _generate_examples(self, images_path: Path, labels_path: Path) -> Iterator[tuple[int, Any]]:
        images, labels = _read_idx(images_path, 3), _read_idx(labels_path, 1)
        if len(images) != len(labels):
            raise UserError(
                f"{images_path} has {len(images)} images, but {labels_path} has {len(labels)} labels; delete "
                "both and download them again"
            )
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield index, {"image": Image.fromarray(image), "label": int(label)}


with tfds.core.registered.skip_registration():  # the names stay TFDS's

    class Mnist(_IdxWithoutTensorFlow, mnist.MNIST):
        """TFDS's `mnist`."""

        name = "mnist"

    class FashionMnist(_IdxWithoutTensorFlow, mnist.FashionMNIST):
        """TFDS's `fashion_mnist`."""

        name = "fashion_mnist"

    class Kmnist(_IdxWithoutTensorFlow, mnist.KMNIST):
        """TFDS's `kmnist`."""

        name = "kmnist"

    class Digits(tfds.core.GeneratorBasedBuilder):
        """The 1,797 8x8 digits inside scikit-learn: real handwriting, 10 classes."""

        name = "digits"
        VERSION = tfds.core.Version("1.0.0")

        @classmethod
        def raw_urls(cls) -> dict[str, str]:
            return {}

        def _info(self) -> tfds.core.DatasetInfo:
            return tfds.core.DatasetInfo(
                builder=self,
                description="UCI optical recognition of handwritten digits, as in scikit-learn.",
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(shape=(8, 8, 1)),
                        "label": tfds.features.ClassLabel(num_classes=10),
                    }
                ),
                supervised_keys=("image", "label"),
                homepage="https://archive.ics.uci.edu/dataset/80",
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            from sklearn.datasets import load_digits

            digits = load_digits()
            images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # stored as 0..16
            is_test = stratified(digits.target, _DIGITS_TEST_SIZE, 0, 0)
            return {
                split: self._generate_examples(images, digits.target, np.flatnonzero(rows))
                for split, rows in {"train": ~is_test, "test": is_test}.items()
            }

        def _generate_examples(
            self, images: np.ndarray, labels: np.ndarray, rows: np.ndarray
        ) -> Iterator[tuple[int, Any]]:
            for row in rows.tolist():
                yield row, {"image": Image.fromarray(images[row]), "label": int(labels[row])}


BUILDERS = {builder.name: builder for builder in (Mnist, FashionMnist, Kmnist, Cifar10, Cifar100, Digits)}


def prepare(name: str, root: Path) -> tuple[Path, Path]:
    """Prepares one of `BUILDERS` as array_record. It ends within 10 s if there is no network.

    Args:
      name: name of the set.
      root: data folder. Raw files are searched for in its folders `manual`, `manual/NAME` and
        `downloads/manual`. If it is not writable, a folder in the user's cache or a temporary one is used.

    Returns:
      The data folder that contains the set, and the folder of the set in it.

    Raises:
      UnreachableError: raw files are missing and cannot be downloaded.
      UserError: a raw file is not the one that TFDS knows, or the set cannot be written.
    """
    builder_class = BUILDERS[name]
    urls = builder_class.raw_urls()
    manual = raw_files.provide(name, urls, root)
    # Then the preparation takes nearly a minute, in addition to the download.
    if (size := raw_files.size(urls)) > _MANY_BYTES:
        print(
            f"preparing {name} once, from {size / 1e6:.0f} MB of raw files ...", file=sys.stderr, flush=True
        )
    for target in (root, folders.user_cache() / "tensorflow_datasets", None):
        try:
            if target is None:
                target = Path(tempfile.mkdtemp(prefix="dl-datasets-"))
            if target.parent == folders.user_cache():
                folders.make_private(folders.user_cache())
            target.mkdir(parents=True, exist_ok=True)
            if not folders.is_writable(target):
                continue
            staging = tempfile.mkdtemp(prefix=".dl_preparing-", dir=target)
        except OSError:
            continue
        try:
            return target, _build(builder_class, Path(staging), target, manual)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    raise UserError(
        f"{name} cannot be prepared: neither {root} nor {folders.user_cache()} nor "
        f"{tempfile.gettempdir()} can be written; free some space, or choose another --data-dir"
    )


def _build(builder_class: Any, staging: Path, target: Path, manual: Path | None) -> Path:
    name = builder_class.name
    try:
        with _quiet():
            builder = builder_class(data_dir=staging)
            builder.download_and_prepare(
                download_dir=(staging if name == "digits" else target) / "downloads",
                download_config=tfds.download.DownloadConfig(manual_dir=manual, try_download_gcs=False),
                file_format="array_record",
            )
    except (requests.RequestException, util.DownloadError) as error:
        raise raw_files.unreachable(name, builder_class.raw_urls(), target, type(error).__name__) from error
    except download_manager.NonMatchingChecksumError as error:
        text = " ".join(str(error).partition("To debug")[0].split())
        raise UserError(f"{name}: {text}: delete that file and download it again") from error
    except OSError as error:
        raise UserError(f"{name} could not be prepared in {target}: {error}") from error
    return _publish(Path(builder.data_dir), target / name / str(builder.version))


def _publish(staged: Path, final: Path) -> Path:
    """Moves a finished folder to its final path. If another process was faster, its folder is kept."""
    final.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(10):
        try:
            staged.rename(final)
            return final
        except OSError as error:
            if (final / "dataset_info.json").is_file():
                return final
            failure = error
            with contextlib.suppress(OSError):  # Another process left it incomplete.
                final.rename(final.with_name(f"{final.name}.incomplete-{uuid.uuid4().hex}"))
    raise UserError(f"{final} cannot be written ({failure}); choose another --data-dir")


def _read_idx(path: Path, rank: int) -> np.ndarray:
    """Reads a gzip-packed IDX file of unsigned bytes."""
    try:
        content = gzip.decompress(path.read_bytes())
        magic, *shape = struct.unpack_from(f">{rank + 1}I", content)
        if magic != 0x800 + rank:
            raise ValueError(f"its magic number is {magic}, not {0x800 + rank}")
        return np.frombuffer(content, np.uint8, offset=4 * (rank + 1)).reshape(shape)
    except (OSError, EOFError, zlib.error, struct.error, ValueError) as error:
        raise UserError(
            f"{path} is not an IDX file of rank {rank} ({error}): delete it and download it again"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Returns a context that hides the progress bars, prints and logs of TFDS and reduces its retries."""
    loggers = {name: logging.getLogger(name) for name in ("absl", "urllib3")}
    levels = {name: logger.level for name, logger in loggers.items()}
    retries, downloader.MAX_RETRIES = downloader.MAX_RETRIES, 1
    tfds.display_progress_bar(enable=False)
    for logger in loggers.values():
        logger.setLevel(logging.ERROR)
    try:
        with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    finally:
        downloader.MAX_RETRIES = retries
        for name, logger in loggers.items():
            logger.setLevel(levels[name])
