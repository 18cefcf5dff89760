"""Predictions of a finished run for new images: the probabilities of its classes or labels."""

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

CHUNK = 256  # images in memory at the same time


class Classifier:
    """The classifier that a run ended with.

    Attributes:
      class_names: the name of each class.
      image_shape: the shape (H, W, C) of its input images, which are uint8.
    """

    def __init__(self, experiment: Experiment, run: RunFolder, mesh: Mesh):
        """Restores the variables.

        Raises:
          UserError: the experiment is not an image classifier, or the run does not have a checkpoint.
        """
        kind = experiment.task.kind
        if kind is not None and kind.name not in ("classification", "multi_label"):
            raise UserError(
                f"{run.name} is a {kind.words} without classes; only a classifier can predict from files; "
                "use dl.load_run and its predict for the outputs of other models"
            )
        spec = experiment.data.train.spec
        image = spec.get(experiment.task.input_name)
        outputs = outputs_fn(experiment)
        if outputs is None or image is None or len(image.shape) != 3 or image.dtype != np.uint8:
            raise UserError(
                f"{run.name} does not read images; only an image classifier can predict from files"
            )
        if not run.checkpoints_path.is_dir():
            raise UserError(f"{run.folder} has no checkpoints; train the run again")
        self.image_shape = image.shape
        self._spec, self._input_name, self._mesh = spec, experiment.task.input_name, mesh
        self._variables = restore_variables(experiment, run, mesh)
        self._predict = _probabilities(outputs, kind is not None and kind.name == "multi_label")
        shards = num_batch_shards(mesh)
        self._batch_size = -(-min(experiment.eval_batch_size, CHUNK) // shards) * shards
        num_classes = self._of(np.zeros((1, *self.image_shape), np.uint8)).shape[-1]
        self.class_names = class_names(experiment.data, num_classes)

    def read(self, path: Path) -> np.ndarray:
        """Reads an image as the images of the data set are read: uint8, cropped and resized to `image_shape`.

        Raises:
          UserError: the file is not an image.
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
                f"the outputs of the model have the shape {logits.shape}; expected (images, classes)"
            )
        if has_many_labels:
            return jax.nn.sigmoid(logits)
        if logits.shape[1] < 2:
            raise UserError("the model has one output; a classifier must have at least two")
        return jax.nn.softmax(logits)

    return predict


def image_files(paths: Iterable[Path]) -> list[Path]:
    """Returns the given files, and the images inside the given folders at any depth, sorted by name.

    Folders are read as in training: links are followed, and hidden files are skipped. A file that is given is
    read whatever its ending is.

    Raises:
      UserError: a path does not exist or is not a file, or a folder does not contain images.
    """
    found: list[Path] = []
    for path in paths:
        if os.path.isdir(path):  # unlike Path.is_dir, it never raises an error
            files = images_below(path)
            if not files:
                raise UserError(
                    f"{printable(path)} does not contain images; it needs files that end in "
                    f"{', '.join(SUFFIXES)}"
                )
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
    """Yields each file with its probabilities, in order; calls `refuse` for a file that cannot be read."""
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
    """Writes the same as `write_csv` to a binary file."""
    text = io.TextIOWrapper(file, "utf-8", "backslashreplace", newline="")
    write_csv(text, predicted, names, top)
    text.detach()  # which flushes; the caller closes the file


def write_csv(
    file: IO[str], predicted: Iterable[tuple[Path, np.ndarray]], names: Sequence[str], top: int
) -> None:
    """Writes a line for each image: `image`, then `class_1`, `probability_1` and so on.

    `text.csv_cell` escapes names that a spreadsheet would run or that would control a terminal.
    """
    writer = csv.writer(file)
    ranks = range(1, min(top, len(names)) + 1)
    writer.writerow(["image", *(f"{what}_{k}" for k in ranks for what in ("class", "probability"))])
    for path, probabilities_C in predicted:
        best = best_classes(probabilities_C, names, top)
        writer.writerow(
            [csv_cell(path), *(word for name, p in best for word in (csv_cell(name), f"{p:.6f}"))]
        )
