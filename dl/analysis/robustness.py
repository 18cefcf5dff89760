"""`python -m dl robustness RUN`: a finished classifier on corrupted copies of a split.

Shapes: N examples of a split, K corruptions, S severities, B examples of a batch.
"""

import dataclasses
import itertools
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dl.analysis.corruption_errors import Errors, figures, lines_of, table_of, words
from dl.cli.options import parse
from dl.data.images.corruptions import NAMES, SEVERITIES, constants_of, corrupt_stored
from dl.data.images.decoding import pixel_scale
from dl.data.pipeline import Batches
from dl.errors import UserError
from dl.experiment import Experiment
from dl.inference.load import rebuild
from dl.labels import class_labels, is_class_label
from dl.option_types import OutputFile, Seed
from dl.runs.console import Console, save, save_text, writing
from dl.runs.folder import Run, write_json
from dl.runs.log import finite
from dl.runs.predictions import OutputsFn, collect_outputs, outputs_fn
from dl.runs.tables import Table
from dl.sharding import make_mesh, num_batch_shards
from dl.stopping import FINAL_SPLIT
from dl.system.files import named_path
from dl.training.loop import restore_variables
from dl.types import Batch, Identity, Source, Variables

if TYPE_CHECKING:
    from PIL import Image

PROG = "python -m dl robustness"
NUM_SHOWN = 3  # images of a preview
_CHUNK = 1_024  # examples in memory while the range of stored floats is looked at


@dataclasses.dataclass(frozen=True)
class RobustnessOptions:
    """What is measured, and what is written.

    Attributes:
      split: whose images are corrupted.
      baseline: a run on the same data, by whose errors those of RUN are divided: mCE.
      seed: of the corruptions.
      preview: a PNG file to draw a few images to, in every corruption and severity.
      markdown: a file to write the table to.
      latex: a file to write the table to.
      experiment: NAME or path of the experiment's code, where it is no longer where the run found it.
      baseline_experiment: likewise, of the baseline.
      data_dir: the folder of prepared data sets. None: $TFDS_DATA_DIR, else ~/tensorflow_datasets.
    """

    split: str = FINAL_SPLIT
    baseline: Path | None = None
    seed: Seed = 0
    preview: OutputFile | None = None
    markdown: OutputFile | None = None
    latex: OutputFile | None = None
    experiment: str | None = None
    baseline_experiment: str | None = None
    data_dir: Path | None = None


@dataclasses.dataclass(frozen=True)
class Subject:
    """A finished classifier of images, and the split that it is to be measured on.

    Attributes:
      run: its folder.
      experiment: as the code makes it now.
      outputs: from variables and a stored batch to logits.
      split: the name of the split.
      warning: what is not as it was when the run began; empty if all is.
    """

    run: Run
    experiment: Experiment
    outputs: OutputsFn
    split: str
    warning: str

    @property
    def source(self) -> Source:
        return self.experiment.data.evaluations[self.split]


def assess(argv: Sequence[str]) -> tuple[Table, list[str]]:
    """Measures a finished classifier on images that are corrupted in ten ways and five severities.

    With a baseline the errors are divided by its own, as mCE and relative mCE (Hendrycks & Dietterich 2019).
    Writes robustness.json into the run's folder.

    Returns:
      Accuracy by corruption and severity, and a line for each figure of them all.

    Raises:
      UserError: a folder without a finished image classifier, other data than it had, or a file that cannot
        be written.
    """
    folders = list(itertools.takewhile(lambda word: not word.startswith("-"), argv))
    _, options = parse(lambda: None, RobustnessOptions, argv[len(folders) :], f"{PROG} RUN", _about())
    if len(folders) != 1:
        raise UserError(f"robustness takes one run, got {len(folders)}: {PROG} RUN, the folder of a run")
    if options.data_dir is not None:
        os.environ["TFDS_DATA_DIR"] = str(options.data_dir)
    subjects = [open_classifier(named_path(folders[0]), options.split, options.experiment)]
    if options.baseline is not None:
        subjects.append(open_classifier(options.baseline, options.split, options.baseline_experiment))
        check_same_images(*subjects)
    for warning in filter(None, (subject.warning for subject in subjects)):
        print(f"warning: {warning}", file=sys.stderr)
    subject = subjects[0]
    if notice := subject.experiment.data.notice:
        Console().box("NOT THE DATA YOU MAY EXPECT", notice)
    if options.preview is not None:
        save(lambda file: preview(subject, options.seed).save(file, "PNG"), options.preview)
    mesh = make_mesh()
    found = figures(*(measure_errors(one, mesh, options.seed) for one in subjects))
    table, lines = table_of(found, options.split), lines_of(found, str(options.baseline))
    record = record_of(subject, found, options.seed)
    with writing(subject.run.robustness_path):
        write_json(subject.run.robustness_path, record)
    if options.markdown is not None:
        save_text(table.to_markdown(), options.markdown)
    if options.latex is not None:
        save_text(table.to_latex(), options.latex)
    return table, lines


def open_classifier(folder: Path, split: str, experiment: str | None = None) -> Subject:
    """Returns the classifier that a finished run ended with.

    Args:
      folder: of the run.
      split: to measure on; not `train`.
      experiment: where its code is now; None: where run.json says.

    Raises:
      UserError: the run has not finished, trained several seeds, classifies no images, or had other data.
    """
    rebuilt = rebuild(folder, experiment)
    run, data = rebuilt.run, rebuilt.experiment.data
    if run.result is None:
        raise UserError(f"the run in {folder} has not finished; run its command again first")
    if rebuilt.num_seeds > 1:
        raise UserError(f"{folder} trained {rebuilt.num_seeds} seeds at the same time; give a run of one")
    known = (run.record or {}).get("dataset") or {}
    if known.get("checksum", data.identity.checksum) != data.identity.checksum:
        raise UserError(
            f"{folder} was trained on {known.get('name')} (sha256 {str(known['checksum'])[:12]}), and at "
            f"hand is {_named(data.identity)}; give the same data by --data-dir"
        )
    if split not in data.evaluations:
        known_splits = ", ".join(data.evaluations) or "none"
        raise UserError(f"--split {split}: {folder} has no such split to evaluate; choose of {known_splits}")
    outputs = outputs_fn(rebuilt.experiment)
    kind = rebuilt.experiment.task.kind
    if kind is not None and kind.name != "classification":
        raise UserError(f"{run.name} is a {kind.words}; only a classifier can be measured")
    source, name = data.evaluations[split], rebuilt.experiment.task.input_name
    if outputs is None:
        raise UserError(f"{run.name} states no outputs to classify by; give its Task a predict=")
    _check_images(source, name)
    if not is_class_label(source.spec.get("label")):
        raise UserError(f"the {split} split has no class as its label; only a classifier can be measured")
    return Subject(run, rebuilt.experiment, outputs, split, rebuilt.warning)


def check_same_images(subject: Subject, baseline: Subject) -> None:
    """Raises UserError if two classifiers were not trained and measured on the same data."""
    ours, theirs = (one.experiment.data.identity for one in (subject, baseline))
    if (ours.checksum, len(subject.source)) != (theirs.checksum, len(baseline.source)):
        raise UserError(
            f"{subject.run.folder} and {baseline.run.folder} were trained on different data, {_named(ours)} "
            f"and {_named(theirs)}; choose another baseline"
        )


def measure_errors(subject: Subject, mesh: Mesh, seed: int = 0) -> Errors:
    """Classifies a split as stored and in every corruption and severity, by one compiled program.

    Args:
      subject: the classifier.
      mesh: the devices.
      seed: of the corruptions.

    Raises:
      UserError: the run has no checkpoint, or its outputs are no logits.
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
            f"the outputs of {subject.run.name} have the shape {logits.shape} and the type {logits.dtype}; a "
            "classifier has one row of two or more floats an image"
        )

    def is_wrong(inputs: Variables, batch: Batch) -> jax.Array:
        batch = corrupt_stored(batch, name, inputs["which"], inputs["severity"], seed)
        logits_BC = outputs(inputs["variables"], batch)
        return logits_BC.argmax(-1) != class_labels(batch["label"], logits_BC)

    def wrong_N(which: int, severity: int) -> np.ndarray:
        # Numbers of the program, not parts of it: the same function is compiled once.
        inputs = {"variables": variables, "which": np.int32(which), "severity": np.int32(severity)}
        return collect_outputs(is_wrong, inputs, batches, mesh)

    clean_N = wrong_N(0, 0)
    by_corruption = []
    for which, name_ in enumerate(NAMES):
        print(f"{subject.run.folder}: {words(name_)} …", file=sys.stderr, flush=True)
        by_corruption.append(np.stack([wrong_N(which, severity) for severity in SEVERITIES], axis=-1))
    return Errors(clean_N, np.stack(by_corruption, axis=1))


def record_of(subject: Subject, found: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Returns what robustness.json says: the figures, and of what they are."""
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
    """Returns a picture of the first images of the split: a row a corruption, by severity."""
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
        what = f"has the shape {leaf.shape}" if leaf is not None else "is not there"
        raise UserError(f"the input {name} {what}; only images, (H, W, C), can be corrupted")
    pixel_scale(leaf.dtype, name)
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return
    rows = np.arange(len(source))
    parts = [source[rows[start : start + _CHUNK]][name] for start in range(0, len(rows), _CHUNK)]
    low, high = min(part.min() for part in parts), max(part.max() for part in parts)
    if not (low >= 0 and high <= 1):
        raise UserError(
            f"the stored images have values from {low:g} to {high:g}; corruptions are of images in [0, 1]: "
            "store these, and do the rest in preprocess="
        )


def _named(identity: Identity) -> str:
    return f"{identity.name} (sha256 {identity.checksum[:12]})"


def _about() -> str:
    return " ".join((assess.__doc__ or "").partition("Returns:")[0].split())
