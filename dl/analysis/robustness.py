"""The robustness of a finished image classifier: its errors on corrupted copies of a split.

Shapes: N examples of a split, K corruptions, S severities, B examples of a batch.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dl.analysis.corruption_errors import Errors, figures, lines_of, table_of, words
from dl.data.images.corruptions import NAMES, SEVERITIES, constants_of, corrupt_stored
from dl.data.images.decoding import pixel_scale
from dl.data.pipeline import Batches
from dl.errors import UserError
from dl.experiment import Experiment
from dl.inference.load import rebuild
from dl.labels import class_labels, is_class_label
from dl.runs.console import writing
from dl.runs.folder import RunFolder
from dl.runs.log import finite
from dl.runs.predictions import OutputsFn, collect_outputs, outputs_fn
from dl.runs.tables import Table
from dl.sharding import make_mesh, num_batch_shards
from dl.stopping import FINAL_SPLIT
from dl.system.json_files import write_json
from dl.training.restore import restore_variables
from dl.types import Batch, Identity, Source, Variables

if TYPE_CHECKING:
    from PIL import Image

NUM_SHOWN = 3  # images of a preview
_CHUNK = 1_024  # examples in memory while the range of stored floats is checked


@dataclasses.dataclass(frozen=True)
class Subject:
    """A finished image classifier, and the split that it is measured on.

    Attributes:
      run: the folder of the run.
      experiment: the experiment that the present code makes.
      outputs: returns the logits for variables and a stored batch.
      split: the name of the split.
      warning: what has changed since the run began; empty if nothing has.
    """

    run: RunFolder
    experiment: Experiment
    outputs: OutputsFn
    split: str
    warning: str

    @property
    def source(self) -> Source:
        return self.experiment.data.evaluations[self.split]


@dataclasses.dataclass(frozen=True)
class Robustness:
    """The metrics of a classifier on corrupted images.

    Attributes:
      subject: the classifier.
      figures: the metrics with their 95 % intervals, as robustness.json holds them.
      baseline: the folder of the run whose errors divide those of the classifier. `None` without a baseline.
    """

    subject: Subject
    figures: Mapping[str, Any]
    baseline: Path | None

    @property
    def table(self) -> Table:
        """Accuracy by corruption and severity."""
        return table_of(self.figures, self.subject.split)

    @property
    def lines(self) -> list[str]:
        """A line of text for each metric over all corruptions."""
        return lines_of(self.figures, str(self.baseline))


def assess(
    folder: Path,
    *,
    split: str = FINAL_SPLIT,
    baseline: Path | None = None,
    seed: int = 0,
    experiment: str | None = None,
    baseline_experiment: str | None = None,
    mesh: Mesh | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Robustness:
    """Measures a finished classifier on images that are corrupted in ten ways and five severities.

    With a baseline, the errors are divided by those of the baseline: mCE and relative mCE (Hendrycks &
    Dietterich 2019). The metrics are written to robustness.json in the folder of the run.

    Args:
      folder: the folder of the run.
      split: the split whose images are corrupted.
      baseline: the folder of a run on the same data.
      seed: random seed of the corruptions.
      experiment: NAME or path of the experiment of the run. `None` means the name in run.json.
      baseline_experiment: NAME or path of the experiment of the baseline. `None` means the name in run.json.
      mesh: the devices. `None` means all devices.
      say: called with warnings and lines of progress.

    Raises:
      UserError: a folder does not hold a finished image classifier, the data have changed, or the file cannot
        be written.
    """
    subjects = [open_classifier(folder, split, experiment)]
    if baseline is not None:
        subjects.append(open_classifier(baseline, split, baseline_experiment))
        check_same_images(*subjects)
    for subject in subjects:
        if subject.warning:
            say(f"warning: {subject.warning}")
    mesh = make_mesh() if mesh is None else mesh
    found = figures(*(measure_errors(subject, mesh, seed, say) for subject in subjects))
    run = subjects[0].run
    with writing(run.robustness_path):
        write_json(run.robustness_path, record_of(subjects[0], found, seed))
    return Robustness(subjects[0], found, baseline)


def open_classifier(folder: Path, split: str, experiment: str | None = None) -> Subject:
    """Returns the classifier that a finished run ended with.

    Args:
      folder: the folder of the run.
      split: the split to measure on, which must not be `train`.
      experiment: NAME or path of the experiment. `None` means the name in run.json.

    Raises:
      UserError: the run has not finished, trained several seeds, is not an image classifier, or had other
        data.
    """
    rebuilt = rebuild(folder, experiment)
    run, data = rebuilt.run, rebuilt.experiment.data
    run.finished_result()
    if rebuilt.num_seeds > 1:
        raise UserError(f"{folder} trained {rebuilt.num_seeds} seeds together; give a run of one seed")
    known = (run.record or {}).get("dataset") or {}
    if known.get("checksum", data.identity.checksum) != data.identity.checksum:
        raise UserError(
            f"{folder} was trained on {known.get('name')} (sha256 {str(known['checksum'])[:12]}), but the "
            f"present data are {_named(data.identity)}; give the folder of the same data with --data-dir"
        )
    if split not in data.evaluations:
        known_splits = ", ".join(data.evaluations) or "none"
        raise UserError(f"split={split!r} is not evaluated in {folder}; choose one of {known_splits}")
    outputs = outputs_fn(rebuilt.experiment)
    kind = rebuilt.experiment.task.kind
    if kind is not None and kind.name != "classification":
        raise UserError(f"{run.name} is a {kind.words}; only a classifier can be measured")
    source, name = data.evaluations[split], rebuilt.experiment.task.input_name
    if outputs is None:
        raise UserError(f"the task of {run.name} has no function predict; add one")
    _check_images(source, name)
    if not is_class_label(source.spec.get("label")):
        raise UserError(f"the {split} split does not have class labels; only a classifier can be measured")
    return Subject(run, rebuilt.experiment, outputs, split, rebuilt.warning)


def check_same_images(subject: Subject, baseline: Subject) -> None:
    """Raises UserError if two classifiers were not trained and measured on the same data."""
    ours, theirs = (one.experiment.data.identity for one in (subject, baseline))
    if (ours.checksum, len(subject.source)) != (theirs.checksum, len(baseline.source)):
        raise UserError(
            f"{subject.run.folder} and {baseline.run.folder} were trained on different data, {_named(ours)} "
            f"and {_named(theirs)}; choose another baseline"
        )


def measure_errors(
    subject: Subject, mesh: Mesh, seed: int = 0, say: Callable[[str], None] = lambda line: None
) -> Errors:
    """Classifies a split as stored and in every corruption and severity, by one compiled program.

    Args:
      subject: the classifier.
      mesh: the devices.
      seed: random seed of the corruptions.
      say: called with a line of text at the beginning of each corruption.

    Raises:
      UserError: the run has no checkpoint, or its outputs are not logits.
    """
    experiment, source = subject.experiment, subject.source
    shards = num_batch_shards(mesh)
    size = -(-min(experiment.eval_batch_size, len(source)) // shards) * shards
    batches = Batches(source, size, mesh)
    variables = restore_variables(experiment, subject.run, mesh)
    outputs, name = subject.outputs, experiment.task.input_name
    logits = jax.eval_shape(outputs, variables, jax.eval_shape(lambda: batches[0]))
    if len(logits.shape) != 2 or logits.shape[1] < 2 or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise UserError(
            f"the outputs of {subject.run.name} have the shape {logits.shape} and the dtype "
            f"{logits.dtype}; a "
            "classifier must have one row of two or more floats for each image"
        )

    def is_wrong(inputs: Variables, batch: Batch) -> jax.Array:
        batch = corrupt_stored(batch, name, inputs["which"], inputs["severity"], seed)
        logits_BC = outputs(inputs["variables"], batch)
        return logits_BC.argmax(-1) != class_labels(batch["label"], logits_BC)

    def wrong_N(which: int, severity: int) -> np.ndarray:
        # These are arguments and not constants of the program, so that it is compiled once.
        inputs = {"variables": variables, "which": np.int32(which), "severity": np.int32(severity)}
        return collect_outputs(is_wrong, inputs, batches, mesh)

    clean_N = wrong_N(0, 0)
    by_corruption = []
    for which, name_ in enumerate(NAMES):
        say(f"{subject.run.folder}: {words(name_)} …")
        by_corruption.append(np.stack([wrong_N(which, severity) for severity in SEVERITIES], axis=-1))
    return Errors(clean_N, np.stack(by_corruption, axis=1))


def record_of(subject: Subject, found: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Returns the content of robustness.json: the metrics, and what they were measured on."""
    data = subject.experiment.data
    record = {
        "split": subject.split,
        "dataset": {key: getattr(data.identity, key) for key in ("name", "version", "checksum")},
        "notice": data.notice,
        "params_digest": (subject.run.result or {}).get("params_digest"),
        "constants": constants_of(subject.source.spec[subject.experiment.task.input_name].shape),
        "severities": list(SEVERITIES),
        "seed": seed,
        **found,
    }
    return finite(record)


def preview(subject: Subject, seed: int = 0) -> "Image.Image":
    """Returns a picture of the first images of the split: one row for each corruption, by severity."""
    from dl.diagnostics.preview import contact_sheet  # Pillow

    name = subject.experiment.task.input_name
    rows = np.arange(min(NUM_SHOWN, len(subject.source)))
    batch = {name: jnp.asarray(subject.source[rows][name]), "index": jnp.asarray(rows)}
    corrupt = jax.jit(lambda which, severity: corrupt_stored(batch, name, which, severity, seed)[name])
    severities = (0, *SEVERITIES)
    # K corruptions × E examples × severities
    drawn = np.stack([[corrupt(which, s) for s in severities] for which in range(len(NAMES))]).swapaxes(1, 2)
    cells = drawn.reshape(len(NAMES), -1, *drawn.shape[3:])
    headings = [str(s) if s else "stored" for s in severities] * len(rows)
    return contact_sheet(cells[:, 0], cells[:, 1:], headings, [words(name) for name in NAMES])


def _check_images(source: Source, name: str) -> None:
    leaf = source.spec.get(name)
    if leaf is None or len(leaf.shape) != 3:
        what = f"has the shape {leaf.shape}" if leaf is not None else "is missing"
        raise UserError(f"the input {name} {what}; only images, (H, W, C), can be corrupted")
    pixel_scale(leaf.dtype, name)
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return
    rows = np.arange(len(source))
    parts = [source[rows[start : start + _CHUNK]][name] for start in range(0, len(rows), _CHUNK)]
    low, high = min(part.min() for part in parts), max(part.max() for part in parts)
    if not (low >= 0 and high <= 1):
        raise UserError(
            f"the stored images have values from {low:g} to {high:g}; corruptions need values in [0, 1]; "
            "store "
            "such values, and rescale them in preprocess="
        )


def _named(identity: Identity) -> str:
    return f"{identity.name} (sha256 {identity.checksum[:12]})"
