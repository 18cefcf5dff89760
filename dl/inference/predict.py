"""Predictions of a finished run for new images or texts: the probabilities of its classes or labels."""

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
from dl.data.text.features import features_of, reads_text
from dl.errors import UserError
from dl.experiment import Experiment
from dl.runs.folder import RunFolder
from dl.runs.predictions import class_names, collect_outputs, outputs_fn
from dl.sharding import num_batch_shards
from dl.system.files import named_path, read_regular
from dl.system.text import csv_cell, printable
from dl.training.restore import restore_variables
from dl.types import Batch, Variables

CHUNK = 256  # images in memory at the same time
MAX_BYTES = 2**28  # of a file of texts

Input = Path | str
"""The path of an image, or a text."""


class Classifier:
    """The classifier that a run ended with.

    Attributes:
      class_names: the name of each class.
      reads_text: whether its inputs are texts; otherwise they are images.
    """

    def __init__(self, experiment: Experiment, run: RunFolder, mesh: Mesh):
        """Restores the variables.

        Raises:
          UserError: the experiment is not a classifier of images or texts, or the run does not have a
            checkpoint.
        """
        kind = experiment.task.kind
        if kind is not None and kind.name not in ("classification", "multi_label"):
            raise UserError(
                f"{run.name} is a {kind.words} without classes, and predict needs a classifier; to write "
                "text, use generate; in Python, dl.load_run and its predict return the outputs of any model"
            )
        spec = experiment.data.train.spec
        self._leaf = spec.get(experiment.task.input_name)
        self.reads_text = reads_text(experiment.data, experiment.task.input_name)
        is_image = self._leaf is not None and len(self._leaf.shape) == 3 and self._leaf.dtype == np.uint8
        outputs = outputs_fn(experiment)
        if outputs is None or not (is_image or self.reads_text):
            raise UserError(
                f"{run.name} reads neither images nor texts; use dl.load_run and its predict for arrays"
            )
        if not run.checkpoints_path.is_dir():
            raise UserError(f"{run.folder} has no checkpoints; train the run again")
        self._data, self._spec, self._input_name = experiment.data, spec, experiment.task.input_name
        self._mesh = mesh
        self._variables = restore_variables(experiment, run, mesh)
        self._predict = _probabilities(outputs, kind is not None and kind.name == "multi_label")
        shards = num_batch_shards(mesh)
        self._batch_size = -(-min(experiment.eval_batch_size, CHUNK) // shards) * shards
        num_classes = self.probabilities([self._zeros(1)]).shape[-1]
        self.class_names = class_names(experiment.data, num_classes)

    def inputs(self, words: Sequence[str]) -> list[Input]:
        """Returns the images or texts that words of a command line stand for.

        For a classifier of texts, a word is a text, or a file with a text in each line.

        Raises:
          UserError: a word is not an image or a folder of images, or a file cannot be read.
        """
        if not self.reads_text:
            return list(image_files(map(named_path, words)))
        found: list[Input] = []
        for word in words:
            found += _lines(Path(word)) if os.path.isfile(word) else [word]
        return found

    def read(self, given: Input) -> dict[str, np.ndarray]:
        """Returns the features of one input, as the data set makes them.

        An image is read as uint8, cropped and resized to the shape of the data.

        Raises:
          UserError: the file is not an image, or the text is not in the vocabulary.
        """
        if isinstance(given, str):
            return features_of(self._data, [given], self._input_name)
        assert self._leaf is not None
        return {self._input_name: read_pixels(given, self._leaf.shape)[None]}

    def probabilities(self, examples: Sequence[dict[str, np.ndarray]]) -> np.ndarray:
        """Returns the probabilities of the classes, shape examples × classes."""
        read = {name: np.concatenate([example[name] for example in examples]) for name in examples[0]}
        source = ArraySource({**self._zeros(len(examples)), **read})
        batches = Batches(source, self._batch_size, self._mesh)
        return collect_outputs(self._predict, self._variables, batches, self._mesh)

    def _zeros(self, size: int) -> dict[str, np.ndarray]:
        return {name: np.zeros((size, *leaf.shape), leaf.dtype) for name, leaf in self._spec.items()}


def _probabilities(
    outputs: Callable[[Variables, Batch], jax.Array], has_many_labels: bool
) -> Callable[[Variables, Batch], jax.Array]:
    def predict(variables: Variables, batch: Batch) -> jax.Array:
        logits = jnp.asarray(outputs(variables, batch), jnp.float32)
        if logits.ndim != 2:
            raise UserError(
                f"the outputs of the model have the shape {logits.shape}; expected (examples, classes)"
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


def _lines(path: Path) -> list[str]:
    """Returns the lines of a file that are not empty."""
    content = read_regular(path, MAX_BYTES).decode("utf-8", "replace")
    lines = [line for line in content.splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{printable(path)} has no text; give a file with a text in each line")
    return lines


def predict_inputs(
    classifier: Classifier, inputs: Sequence[Input], refuse: Callable[[UserError], None]
) -> Iterator[tuple[Input, np.ndarray]]:
    """Yields each input with its probabilities, in order; calls `refuse` for one that cannot be read."""
    for start in range(0, len(inputs), CHUNK):
        read: list[tuple[Input, dict[str, np.ndarray]]] = []
        for given in inputs[start : start + CHUNK]:
            try:
                read.append((given, classifier.read(given)))
            except UserError as error:
                refuse(error)
        if read:
            probabilities = classifier.probabilities([features for _, features in read])
            yield from zip([given for given, _ in read], probabilities, strict=True)


def best_classes(probabilities_C: np.ndarray, names: Sequence[str], top: int) -> list[tuple[str, float]]:
    """Returns the `top` most probable classes with their probabilities, the most probable first."""
    order = np.argsort(-probabilities_C, kind="stable")[:top]
    return [(names[c], float(probabilities_C[c])) for c in order]


def write_csv_file(
    file: BinaryIO, what: str, predicted: Iterable[tuple[Input, np.ndarray]], names: Sequence[str], top: int
) -> None:
    """Writes the same as `write_csv` to a binary file."""
    text = io.TextIOWrapper(file, "utf-8", "backslashreplace", newline="")
    write_csv(text, what, predicted, names, top)
    text.detach()  # which flushes; the caller closes the file


def write_csv(
    file: IO[str], what: str, predicted: Iterable[tuple[Input, np.ndarray]], names: Sequence[str], top: int
) -> None:
    """Writes a line for each input: the column `what`, then `class_1`, `probability_1` and so on.

    `text.csv_cell` escapes names that a spreadsheet would run or that would control a terminal.
    """
    writer = csv.writer(file)
    ranks = range(1, min(top, len(names)) + 1)
    writer.writerow([what, *(f"{figure}_{k}" for k in ranks for figure in ("class", "probability"))])
    for given, probabilities_C in predicted:
        best = best_classes(probabilities_C, names, top)
        writer.writerow(
            [csv_cell(given), *(word for name, p in best for word in (csv_cell(name), f"{p:.6f}"))]
        )
