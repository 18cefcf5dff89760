"""Records of images: the examples of a prepared set, with random access and decoded without TensorFlow."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np

from dl.data.images import fast_decoding
from dl.data.images.disk_dataset import StoredSource, to_pixels
from dl.data.images.prepared import Prepared
from dl.data.source import chunks
from dl.data.tfds.records import Records
from dl.errors import UserError


class RecordSource(StoredSource):
    """The examples of one split of a prepared set, read and decoded at every access."""

    def __init__(self, prepared: Prepared, split: str, rows: np.ndarray | None = None):
        """Selects the rows `rows` of `split` in that order, or all rows if None. Nothing is read yet."""
        super().__init__(prepared, split, rows)
        self._prepared = prepared
        self._records = Records(
            prepared.folder,
            split,
            prepared.shards[split],
            keys=(prepared.image_key, prepared.label_key),
            encoded=(prepared.image_key,) if prepared.image_is_encoded else (),
        )

    def decode_all(self) -> tuple[dict[str, np.ndarray], dict[int, UserError]]:
        """Reads every row, after checking the number of records in each shard."""
        self._records.check_lengths()
        return super().decode_all()

    def labels(self) -> np.ndarray:
        key = self._prepared.label_key
        found = np.zeros(len(self), np.int32)
        for rows in chunks(len(self)):
            for row, record in zip(rows, self._records.read(self._rows[rows]), strict=True):
                found[row] = self._records.parse(int(self._rows[row]), record, only=key)[key]
        return found

    def _examples(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
        for row, record in zip(rows, self._records.read(rows), strict=True):
            yield self._decode(int(row), record)

    def _decode(self, row: int, record: bytes) -> tuple[np.ndarray, int]:
        prepared, where = self._prepared, self._records.where(row)
        example = self._records.parse(row, record)
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
        if prepared.is_fast and prepared.is_resized and prepared.image_is_encoded:
            fast = fast_decoding.pixels(image, stored, prepared.image_shape)
            if fast is not None:
                return fast
            image = fast_decoding.load(image, stored, *prepared.image_shape[:2])
        return to_pixels(image, prepared)
