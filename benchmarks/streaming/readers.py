"""The readers: each yields shuffled batches of images, uint8 of shape (BATCH, SIZE, SIZE, 3), from a folder.

All crop the centre and resize it with the bilinear filter that anti-aliases. Each uses its fastest way to the
same picture: PIL decodes at a reduced scale (`draft`), and so does TensorFlow (`ratio`).
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

SIZE, BATCH, NUM_WORKERS = 224, 64, 2

Reader = Callable[[Path, int], Iterator[Any]]


def _paths(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.jpg"))


def _pil_pixels(path: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as image:
        image.draft("RGB", (SIZE, SIZE))  # at least so large
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
        return np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box))


def dl_batches(folder: Path, num_batches: int) -> Iterator[Any]:
    """Yields the batches of `dl`, on the device, in the order of (seed, step)."""
    from dl.data import image_classification
    from dl.data.pipeline import Batches
    from dl.sharding import make_mesh

    data = image_classification(str(folder), image_size=SIZE, max_resident_bytes=0, fast_decoding=True)
    batches = Batches(data.train, BATCH, make_mesh(), seed=0, max_resident_bytes=0)
    for batch in batches.iterate(0, num_batches):
        yield batch["image"].block_until_ready()


def torch_batches(folder: Path, num_batches: int) -> Iterator[Any]:
    """Yields the batches of PyTorch's DataLoader with worker processes."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    class Photographs(Dataset):  # type: ignore[type-arg]
        def __init__(self) -> None:
            self.paths = _paths(folder)

        def __len__(self) -> int:
            return len(self.paths)

        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.from_numpy(_pil_pixels(self.paths[index]).copy())

    dataset = Photographs()
    sampler = torch.utils.data.RandomSampler(dataset, replacement=True, num_samples=num_batches * BATCH)
    yield from DataLoader(dataset, BATCH, sampler=sampler, num_workers=NUM_WORKERS, prefetch_factor=4)


def tensorflow_batches(folder: Path, num_batches: int) -> Iterator[Any]:
    """Yields the batches of tf.data, which decodes and resizes in C++ threads."""
    import tensorflow as tf

    def pixels(path: Any) -> Any:
        content = tf.io.read_file(path)
        height, width, _ = tf.unstack(tf.io.extract_jpeg_shape(content))
        side = tf.minimum(height, width)
        ratio = tf.where(side >= 8 * SIZE, 8, tf.where(side >= 4 * SIZE, 4, tf.where(side >= 2 * SIZE, 2, 1)))
        image = tf.switch_case(
            tf.cast(tf.math.log(tf.cast(ratio, tf.float32)) / tf.math.log(2.0) + 0.5, tf.int32),
            [
                lambda ratio=ratio: tf.io.decode_jpeg(
                    content, 3, ratio=ratio, dct_method="INTEGER_FAST", fancy_upscaling=False
                )
                for ratio in (1, 2, 4, 8)
            ],
        )
        shape = tf.shape(image)
        side = tf.minimum(shape[0], shape[1])
        top, left = (shape[0] - side) // 2, (shape[1] - side) // 2
        image = tf.image.crop_to_bounding_box(image, top, left, side, side)
        return tf.cast(tf.image.resize(image, (SIZE, SIZE), antialias=True), tf.uint8)

    paths = list(map(str, _paths(folder)))
    dataset = tf.data.Dataset.from_tensor_slices(paths).shuffle(len(paths), seed=0).repeat()
    dataset = (
        dataset.map(pixels, tf.data.AUTOTUNE, deterministic=False).batch(BATCH).prefetch(tf.data.AUTOTUNE)
    )
    yield from dataset.take(num_batches).as_numpy_iterator()


def grain_batches(folder: Path, num_batches: int) -> Iterator[Any]:
    """Yields the batches of Grain with reading threads."""
    import grain

    paths = _paths(folder)
    dataset = grain.MapDataset.source(paths).shuffle(seed=0).repeat().map(_pil_pixels)
    options = grain.ReadOptions(num_threads=NUM_WORKERS, prefetch_buffer_size=4 * BATCH)
    iterator = iter(dataset.to_iter_dataset(options).batch(BATCH))
    for _ in range(num_batches):
        yield next(iterator)


def grain_process_batches(folder: Path, num_batches: int) -> Iterator[Any]:
    """Yields the batches of Grain with worker processes."""
    import grain
    from absl import flags

    flags.FLAGS.mark_as_parsed()  # its workers read flags
    paths = _paths(folder)
    dataset = grain.MapDataset.source(paths).shuffle(seed=0).repeat().map(_pil_pixels)
    dataset = dataset.to_iter_dataset().batch(BATCH)
    options = grain.MultiprocessingOptions(num_workers=NUM_WORKERS, per_worker_buffer_size=4)
    iterator = iter(dataset.mp_prefetch(options))
    for _ in range(num_batches):
        yield next(iterator)


READERS: dict[str, Reader] = {
    "dl": dl_batches,
    "PyTorch DataLoader, 2 processes": torch_batches,
    "tf.data": tensorflow_batches,
    "Grain, 2 threads": grain_batches,
    "Grain, 2 processes": grain_process_batches,
}
