"""Records: the examples of a prepared set, with random access and decoded without TensorFlow."""

import threading
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dl.data.tfds.prepared import damaged


class Records:
    """The records of one split of a prepared set. It may be read from several threads.

    Attributes:
      folder: folder of the set.
      split: name of the split.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        shards: Mapping[Path, int],
        keys: Iterable[str],
        encoded: Iterable[str] = (),
    ):
        """Nothing is read yet.

        Args:
          folder: folder of the set.
          split: name of the split.
          shards: number of records by path of a shard.
          keys: names of the features that are parsed. Others are never looked at.
          encoded: features whose bytes are returned as they are stored.
        """
        self.folder, self.split = folder, split
        self._shards, self._keys, self._encoded = shards, tuple(keys), tuple(encoded)
        self._lock = threading.Lock()

    def check_lengths(self) -> None:
        """Raises UserError unless each shard holds as many records as the description of the set says."""
        for path, length in self._shards.items():
            if (held := self._num_records(path)) != length:
                raise damaged(self.folder, path, f"it holds {held} records, not {length}")

    def read(self, rows: np.ndarray) -> list[bytes]:
        """Returns the records `rows`, in that order, as they are stored.

        Raises:
          UserError: a shard is damaged.
        """
        with self._lock:
            records = self._opened[0]
        try:
            return records.__getitems__(rows.tolist()) if len(rows) else []
        except (RuntimeError, ValueError, IndexError) as error:
            raise damaged(self.folder, self._find_damaged(rows), error) from error

    def parse(self, row: int, record: bytes, only: str | None = None) -> dict[str, Any]:
        """Returns the features of a record, or one of them.

        Raises:
          UserError: the record is damaged.
        """
        _, of_all, of_one = self._opened
        features, decoders = of_all if only is None else (of_one[only], {})
        try:
            return features.deserialize_example_np(record, decoders=decoders)
        except (ImportError, MemoryError):
            raise
        except Exception as error:  # protobuf, zlib and TFDS each raise their own
            raise damaged(self.folder, f"{self.where(row)} in {self.folder}", error) from error

    def where(self, row: int) -> str:
        """Returns the place of a record, for errors."""
        return f"record {row} of split {self.split!r}"

    @cached_property
    def _opened(self) -> tuple[Any, Any, Any]:
        """TFDS's source of raw records, the features that are parsed with their decoders, and each alone."""
        import tensorflow_datasets as tfds

        try:
            builder = tfds.builder_from_directory(self.folder)
            records = builder.as_data_source(
                self.split,
                deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES,
                file_format="array_record",
            )
            features = {key: builder.info.features[key] for key in self._keys}
        except ImportError:
            raise
        except Exception as error:  # TFDS raises many kinds of errors for a damaged description.
            raise damaged(self.folder, self.folder, error) from error
        skip = {key: tfds.decode.SkipDecoding() for key in self._encoded}
        alone = {key: tfds.features.FeaturesDict({key: feature}) for key, feature in features.items()}
        return records, (tfds.features.FeaturesDict(features), skip), alone

    def _num_records(self, path: Path) -> int:
        from array_record.python import array_record_data_source as data_source  # type: ignore[import-untyped]

        if not path.is_file():
            raise damaged(self.folder, path, "the file is missing")
        try:
            return len(data_source.ArrayRecordDataSource([str(path)]))
        except RuntimeError as error:
            raise damaged(self.folder, path, error) from error

    def _find_damaged(self, rows: np.ndarray) -> Path:
        """Returns the first shard whose part of `rows` cannot be read."""
        shard_of = np.searchsorted(np.cumsum(list(self._shards.values())), rows, "right")
        for index, path in enumerate(self._shards):
            if (share := rows[shard_of == index]).size:
                try:
                    self._opened[0].__getitems__(share.tolist())
                except (RuntimeError, ValueError, IndexError):
                    return path
        return self.folder
