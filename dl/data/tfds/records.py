"""Records: the examples of a prepared set, with random access and decoded without TensorFlow."""

import io
import threading
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dl.data.images.disk_dataset import StoredSource, to_pixels
from dl.data.source import chunks
from dl.data.tfds.prepared import Prepared
from dl.errors import UserError


class RecordSource(StoredSource):
    """The examples of one split of a prepared set, read and decoded at every access."""

    def __init__(self, prepared: Prepared, split: str, rows: np.ndarray | None = None):
        """Selects the rows `rows` of `split` in that order, or all rows if None. Nothing is read yet."""
        super().__init__(prepared, split, rows)
        self._prepared = prepared
        self._split = split
        self._lock = threading.Lock()

    def decode_all(self) -> tuple[dict[str, np.ndarray], dict[int, UserError]]:
        """Reads every row, after checking the number of records in each shard."""
        for path, length in self._prepared.shards[self._split].items():
            if (held := _num_records(self._prepared, path)) != length:
                raise self._prepared.damaged(path, f"it holds {held} records, not {length}")
        return super().decode_all()

    def labels(self) -> np.ndarray:
        import tensorflow_datasets as tfds

        _, features, _ = self._opened
        key = self._prepared.label_key
        only_label = tfds.features.FeaturesDict({key: features[key]})
        found = np.zeros(len(self), np.int32)
        for rows in chunks(len(self)):
            for row, record in zip(rows, self._records(self._rows[rows]), strict=True):
                found[row] = self._parse(int(self._rows[row]), record, only_label, {})[key]
        return found

    def _examples(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
        for row, record in zip(rows, self._records(rows), strict=True):
            yield self._decode(int(row), record)

    @cached_property
    def _opened(self) -> tuple[Any, Any, Any]:
        """TFDS's source of raw records, the only features that are parsed, and their decoders."""
        import tensorflow_datasets as tfds

        prepared = self._prepared
        try:
            builder = tfds.builder_from_directory(prepared.folder)
            records = builder.as_data_source(
                self._split,
                deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES,
                file_format="array_record",
            )
            keys = (prepared.image_key, prepared.label_key)
            features = {key: builder.info.features[key] for key in keys}
        except ImportError:
            raise
        except Exception as error:  # TFDS raises many kinds of errors for a damaged description.
            raise prepared.damaged(prepared.folder, error) from error
        skip = {prepared.image_key: tfds.decode.SkipDecoding()} if prepared.image_is_encoded else {}
        return records, tfds.features.FeaturesDict(features), skip

    def _records(self, rows: np.ndarray) -> list[bytes]:
        with self._lock:
            records = self._opened[0]
        try:
            return records.__getitems__(rows.tolist()) if len(rows) else []
        except (RuntimeError, ValueError, IndexError) as error:
            raise self._prepared.damaged(self._find_damaged(rows), error) from error

    def _find_damaged(self, rows: np.ndarray) -> Path:
        """Returns the first shard whose part of `rows` cannot be read."""
        shards = self._prepared.shards[self._split]
        shard_of = np.searchsorted(np.cumsum(list(shards.values())), rows, "right")
        for index, path in enumerate(shards):
            if (share := rows[shard_of == index]).size:
                try:
                    self._opened[0].__getitems__(share.tolist())
                except (RuntimeError, ValueError, IndexError):
                    return path
        return self._prepared.folder

    def _decode(self, row: int, record: bytes) -> tuple[np.ndarray, int]:
        prepared, where = self._prepared, f"record {row} of split {self._split!r}"
        _, features, decoders = self._opened
        example = self._parse(row, record, features, decoders)
        try:
            image = _to_array(example[prepared.image_key], prepared)
            label = int(example[prepared.label_key])
        except (ImportError, MemoryError):
            raise
        except Exception as error:  # Pillow's plugins each raise their own
            raise prepared.damaged(f"{where} in {prepared.folder}", error) from error
        if image.shape != prepared.image_shape:
            reason = f"its image is {image.shape}, not {prepared.image_shape}"
            raise prepared.damaged(f"{where} in {prepared.folder}", reason)
        if not 0 <= label < len(prepared.class_names):
            raise UserError(
                f"{prepared.name} in {prepared.folder}: {where} has the label {label}, expected "
                f"0 to {len(prepared.class_names) - 1}: prepare the set again with correct labels"
            )
        return image, label

    def _parse(self, row: int, record: bytes, features: Any, decoders: Any) -> Any:
        prepared = self._prepared
        try:
            return features.deserialize_example_np(record, decoders=decoders)
        except (ImportError, MemoryError):
            raise
        except Exception as error:  # protobuf, zlib and TFDS each raise their own
            where = f"record {row} of split {self._split!r} in {prepared.folder}"
            raise prepared.damaged(where, error) from error


def _num_records(prepared: Prepared, path: Path) -> int:
    from array_record.python import array_record_data_source as data_source  # type: ignore[import-untyped]

    if not path.is_file():
        raise prepared.damaged(path, "the file is missing")
    try:
        return len(data_source.ArrayRecordDataSource([str(path)]))
    except RuntimeError as error:
        raise prepared.damaged(path, error) from error


def _to_array(stored: Any, prepared: Prepared) -> np.ndarray:
    """Returns an image as uint8 (H, W, C). It is cropped and resized only if the stored sizes vary."""
    from PIL import Image

    image: Image.Image
    if prepared.image_is_encoded:
        image = Image.open(io.BytesIO(stored))
    elif prepared.is_resized:
        array = np.asarray(stored, np.uint8)
        image = Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)
    else:
        array = np.asarray(stored, np.uint8)
        return array[..., None] if array.ndim == 2 else array
    with image:
        return to_pixels(image, prepared)
