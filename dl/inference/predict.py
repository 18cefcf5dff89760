"""A finished run reads new images: probabilities of the classes, or labels, that it was trained on."""

import csv
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dl.data.images.files import SUFFIXES, images_below, read_pixels
from dl.data.pipeline import Batches
from dl.data.source import ArraySource
from dl.errors import UserError
from dl.experiment import Experiment
from dl.runs.folder import RunFolder
from dl.runs.predictions import class_names, collect_outputs, outputs_fn
from dl.sharding import num_batch_shards
from dl.system.text import csv_cell, printable
from dl.training.restore import restore_variables
from dl.types import Batch, Variables

CHUNK = 256  # images in memory at a time


class Classifier:
    """The classifier that a run ended with.

    Attributes:
      class_names: one a class.
      image_shape: (H, W, C) of the images that it reads, uint8.
    """

    def __init__(self, experiment: Experiment, run: RunFolder, mesh: Mesh):
        """Restores the variables.

        Raises:
          UserError: the experiment classifies no images, or the run has no checkpoint.
        """
        kind = experiment.task.kind
        if kind is not None and kind.name not in ("classification", "multi_label"):
            raise UserError(
                f"{run.name} is a {kind.words} and knows no classes; only a classifier can "
                "predict from files; for its outputs see Task.predict and restore_variables"
            )
        spec = experiment.data.train.spec
        image = spec.get(experiment.task.input_name)
        outputs = outputs_fn(experiment)
        if outputs is None or image is None or len(image.shape) != 3 or image.dtype != np.uint8:
            raise UserError(f"{run.name} reads no images; only an image classifier can predict from files")
        if not run.checkpoints_path.is_dir():
            raise UserError(f"{run.folder} has no checkpoints; train it again")
        self.image_shape = image.shape
        self._spec, self._input_name, self._mesh = spec, experiment.task.input_name, mesh
        self._variables = restore_variables(experiment, run, mesh)
        self._predict = _probabilities(outputs, kind is not None and kind.name == "multi_label")
        shards = num_batch_shards(mesh)
        self._batch_size = -(-min(experiment.eval_batch_size, CHUNK) // shards) * shards
        num_classes = self._of(np.zeros((1, *self.image_shape), np.uint8)).shape[-1]
        self.class_names = class_names(experiment.data, num_classes)

    def read(self, path: Path) -> np.ndarray:
        """Returns an image as the data set's images are read: uint8, cropped and resized to `image_shape`.

        Raises:
          UserError: it is no image.
        """
        return read_pixels(path, self.image_shape)

    def probabilities(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Returns the probabilities of the classes, shape images × classes."""
        return self._of(np.stack(images))

    def _of(self, images: np.ndarray) -> np.ndarray:
        features = {
            name: np.zeros((len(images), *leaf.shape), leaf.dtype)
            for name, leaf in self._spec.items()
            if name != self._input_name
        }
        source = ArraySource({**features, self._input_name: images})
        batches = Batches(source, self._batch_size, self._mesh)
        return collect_outputs(self._predict, self._variables, batches, self._mesh)


def _probabilities(
    outputs: Callable[[Variables, Batch], jax.Array], has_many_labels: bool
) -> Callable[[Variables, Batch], jax.Array]:
    def predict(variables: Variables, batch: Batch) -> jax.Array:
        logits = jnp.asarray(outputs(variables, batch), jnp.float32)
        if logits.ndim != 2:
            raise UserError(
                f"the model's outputs have the shape {logits.shape}; a classifier has one row an image"
            )
        if has_many_labels:
            return jax.nn.sigmoid(logits)
        if logits.shape[1] < 2:
            raise UserError("the model has one output only, which is no classifier of two classes or more")
        return jax.nn.softmax(logits)

    return predict


def image_files(paths: Iterable[Path]) -> list[Path]:
    """Returns the files, and in place of each folder its images at any depth, by name.

    In a folder the rules of training hold: links are followed, what is hidden is not seen. A file that is
    named is read whatever it is called.

    Raises:
      UserError: a path does not exist or is no file, or a folder holds no images.
    """
    found: list[Path] = []
    for path in paths:
        if os.path.isdir(path):  # which, unlike the path's own method, is never an error
            files = images_below(path)
            if not files:
                raise UserError(f"{printable(path)} holds no images (no file ends in {', '.join(SUFFIXES)})")
            found += files
        elif os.path.isfile(path):
            found.append(path)
        else:
            what = "is neither a file nor a folder" if os.path.lexists(path) else "does not exist"
            raise UserError(f"{printable(path)} {what}; give an image, or a folder of images")
    return found


def predict_files(
    classifier: Classifier, paths: Sequence[Path], refuse: Callable[[UserError], None]
) -> Iterator[tuple[Path, np.ndarray]]:
    """Yields each file with its probabilities, in order; one that cannot be read goes to `refuse`."""
    for start in range(0, len(paths), CHUNK):
        read: list[tuple[Path, np.ndarray]] = []
        for path in paths[start : start + CHUNK]:
            try:
                read.append((path, classifier.read(path)))
            except UserError as error:
                refuse(error)
        if read:
            probabilities = classifier.probabilities([pixels for _, pixels in read])
            yield from zip([path for path, _ in read], probabilities, strict=True)


def best_classes(probabilities_C: np.ndarray, names: Sequence[str], top: int) -> list[tuple[str, float]]:
    """Returns the `top` most probable classes with their probabilities, the most probable first."""
    order = np.argsort(-probabilities_C, kind="stable")[:top]
    return [(names[c], float(probabilities_C[c])) for c in order]


def write_csv_file(
    file: BinaryIO, predicted: Iterable[tuple[Path, np.ndarray]], names: Sequence[str], top: int
) -> None:
    """Does what `write_csv` does, to a file of bytes."""
    text = io.TextIOWrapper(file, "utf-8", "backslashreplace", newline="")
    write_csv(text, predicted, names, top)
    text.detach()  # which flushes; the caller closes the file


def write_csv(
    file: IO[str], predicted: Iterable[tuple[Path, np.ndarray]], names: Sequence[str], top: int
) -> None:
    """Writes a line for each image: `image`, then `class_1`, `probability_1` and so on.

    A name that a spreadsheet would run, or that changes a terminal, is written as `text.csv_cell` says.
    """
    writer = csv.writer(file)
    ranks = range(1, min(top, len(names)) + 1)
    writer.writerow(["image", *(f"{what}_{k}" for k in ranks for what in ("class", "probability"))])
    for path, probabilities_C in predicted:
        best = best_classes(probabilities_C, names, top)
        writer.writerow(
            [csv_cell(path), *(word for name, p in best for word in (csv_cell(name), f"{p:.6f}"))]
        )
