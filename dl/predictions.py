"""What a run's last variables say of every example of a split: collected on the devices, kept as an .npz.

Shapes: N examples of a split, B examples of a batch, C classes.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dl.data.order import random_order
from dl.data.pipeline import Batches
from dl.data.splits import Splits
from dl.errors import UserError
from dl.experiment import Experiment
from dl.files import replace_file
from dl.labels import class_labels, is_class_label
from dl.losses import apply_model
from dl.sharding import replicated
from dl.types import Batch, Variables

MAX_BYTES = 64 * 2**20  # of log-probabilities; of a larger split a random sample of examples is kept
_SAMPLE_KEY = (0, 2**62)  # apart from the keys of epochs, (seed, epoch)

Outputs = Callable[[Variables, Batch], jax.Array]


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a classifier says of the examples of one split, in the order of the split's rows.

    Attributes:
      split: its name.
      num_examples: of the split; more than N if only a sample was kept.
      index: the row of each example in the split, int32, shape N.
      label: its class, int32, shape N.
      log_probabilities: natural logarithms, float32, shape N × C.
      class_names: one a class; "0", "1", … where the data name none.
    """

    split: str
    num_examples: int
    index: np.ndarray
    label: np.ndarray
    log_probabilities: np.ndarray
    class_names: tuple[str, ...]

    def save(self, path: Path) -> None:
        """Writes an .npz without pickles, so that a reader sees the old file or the new one."""
        arrays = {name: np.asarray(value) for name, value in vars(self).items()}
        replace_file(path, lambda file: np.savez_compressed(file, allow_pickle=False, **arrays))


def read_predictions(path: Path) -> Predictions:
    """Returns what `Predictions.save` wrote.

    Raises:
      UserError: the file is damaged, or something else.
    """
    try:
        if not path.is_file():
            raise ValueError("it is no regular file")
        with np.load(path, allow_pickle=False) as file:
            found = Predictions(
                str(file["split"]),
                int(file["num_examples"]),
                file["index"],
                file["label"],
                file["log_probabilities"],
                tuple(map(str, file["class_names"])),
            )
        size, num_classes = found.log_probabilities.shape
        if {found.index.shape, found.label.shape} != {(size,)} or len(found.class_names) != num_classes:
            raise ValueError("its arrays differ in length")
    except Exception as error:  # NumPy, zipfile and zlib each raise their own
        brief = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise UserError(f"{path} does not hold predictions ({brief}); train the run again") from None
    return found


def outputs_fn(experiment: Experiment) -> Outputs | None:
    """Returns the function from variables and a stored batch to the model's outputs; None if none is stated.

    That is `experiment.predict_fn`, else `model(batch[input_name])`, on the preprocessed batch.
    """
    model, predict = experiment.model, experiment.predict_fn
    if predict is None and (model is None or experiment.input_name not in experiment.data.train.spec):
        return None

    def outputs(variables: Variables, batch: Batch) -> jax.Array:
        if experiment.preprocess is not None:
            batch = experiment.preprocess(batch)
        if predict is not None:
            return predict(variables, batch)
        assert model is not None
        state = {name: collection for name, collection in variables.items() if name != "params"}
        params = variables.get("params", {})
        return apply_model(model, params, state, batch[experiment.input_name], None)[0]

    return outputs


def collect_outputs(
    outputs: Callable[[Variables, Batch], Any],
    variables: Variables,
    batches: Batches,
    mesh: Mesh,
    rows: np.ndarray | None = None,
    is_cut_short: Callable[[], bool] = lambda: False,
) -> Any:
    """Returns the outputs for a split on the host, in the order of its rows, without padding.

    Args:
      outputs: an array, or a tree of arrays, with a row for each example of a stored batch.
      variables: on the devices.
      batches: of the split, in its own order (`seed` None).
      mesh: the devices; every process gets everything.
      rows: which to keep, increasing; None: all.
      is_cut_short: asked after each batch; once it says so the answer is None.
    """
    compute = jax.jit(outputs, out_shardings=replicated(mesh))
    is_kept = np.ones(len(batches.source), bool)
    if rows is not None:
        is_kept[:] = False
        is_kept[rows] = True
    kept = []
    for step, batch in enumerate(batches.iterate(0, batches.steps_per_epoch)):
        index_B, is_example_B = batches.rows(step)
        is_kept_B = is_example_B & is_kept[index_B]
        kept.append(
            jax.tree.map(lambda rows, keep=is_kept_B: np.asarray(rows)[keep], compute(variables, batch))
        )
        if is_cut_short():
            return None
    return jax.tree.map(lambda *parts: np.concatenate(parts), *kept)


def collect_predictions(
    experiment: Experiment,
    variables: Variables,
    batches: Batches,
    mesh: Mesh,
    split: str,
    is_cut_short: Callable[[], bool] = lambda: False,
) -> Predictions | None:
    """Returns a classifier's predictions for a split; None if this is no classification, or was cut short.

    A classification has an integer `label` in [0, C) an example in its data, and float outputs of shape
    B × C, C > 1: logits, or log-probabilities. Of a split whose log-probabilities take more than `MAX_BYTES`
    a random sample of the examples is kept, always the same.
    """
    outputs = outputs_fn(experiment)
    label = batches.source.spec.get("label")
    if outputs is None or not is_class_label(label):
        return None
    logits = jax.eval_shape(outputs, variables, jax.eval_shape(lambda: batches[0]))
    if len(logits.shape) != 2 or logits.shape[1] < 2 or not jnp.issubdtype(logits.dtype, jnp.floating):
        return None
    size, num_classes = len(batches.source), logits.shape[1]
    rows = np.arange(size, dtype=np.int32)
    if size * num_classes * 4 > MAX_BYTES:
        rows = np.sort(random_order(size, *_SAMPLE_KEY)[: max(1, MAX_BYTES // (4 * num_classes))])

    def predict(variables: Variables, batch: Batch) -> tuple[jax.Array, jax.Array]:
        logits_BC = jnp.asarray(outputs(variables, batch), jnp.float32)
        return jax.nn.log_softmax(logits_BC), class_labels(batch["label"], logits_BC)

    collected = collect_outputs(predict, variables, batches, mesh, rows, is_cut_short)
    if collected is None:
        return None
    log_p_NC, label_N = collected
    if label_N.min() < 0 or label_N.max() >= num_classes:
        return None
    names = class_names(experiment.data, num_classes)
    return Predictions(split, size, rows.astype(np.int32), label_N.astype(np.int32), log_p_NC, names)


def class_names(data: Splits, num_classes: int) -> tuple[str, ...]:
    """Returns the names that the data give their classes, "0", "1", … where they give no such ones."""
    names = tuple(map(str, getattr(data, "class_names", ())))
    return names if len(names) == num_classes else tuple(map(str, range(num_classes)))
