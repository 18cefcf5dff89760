"""Collects the predictions for each kind of task: a `Kept` from the final variables and a split.

Shapes: N examples that are kept, B examples of a batch, C classes or labels.
"""

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dl.data.pipeline import Batches
from dl.errors import UserError
from dl.experiment import Experiment
from dl.runs.predictions.collect import class_names, prepared_outputs_fn
from dl.runs.predictions.collect_classes import collect_classification
from dl.runs.predictions.collect_tokens import (
    collect_language_model,
    collect_masked_language_model,
    collect_sequence_to_sequence,
    collect_tagging,
)
from dl.runs.predictions.collection import Collection
from dl.runs.predictions.kept import (
    MAX_BYTES,
    Kept,
    MultiLabel,
    Outputs,
    Predictions,
    Reconstruction,
    Regression,
)
from dl.runs.predictions.kept_tokens import LanguageModel, MaskedLanguageModel, SequenceToSequence, Tagging
from dl.types import Batch, Variables


def collect_predictions(
    experiment: Experiment,
    variables: Variables,
    batches: Batches,
    mesh: Mesh,
    split: str,
    is_cut_short: Callable[[], bool] = lambda: False,
) -> Kept | None:
    """Returns the predictions for a split that are kept; `None` if nothing is kept, or after an interruption.

    The kind of the task decides what is kept. A task without a kind is a classification if each example has
    an integer `label` and the outputs are floats of shape B × C, C > 1 (logits or log-probabilities).
    Otherwise outputs that are floats are kept.

    Of a classification whose log-probabilities would take more than `collect_classes.MAX_FULL_BYTES`, the
    outcomes are kept. If the predictions would take more than `MAX_BYTES`, a random sample of the examples is
    kept, which is always the same.

    Raises:
      UserError: outputs or targets do not fit the kind of the task.
    """
    outputs = prepared_outputs_fn(experiment)
    if outputs is None:
        return None
    kind = experiment.task.kind
    name = _guess(outputs, variables, batches) if kind is None else kind.name
    if name is None:
        return None
    collection = Collection(experiment, variables, batches, mesh, split, is_cut_short, outputs)
    return _COLLECTORS[name](collection)


def _guess(
    outputs: Callable[[Variables, Batch], tuple[jax.Array, Batch]], variables: Variables, batches: Batches
) -> str | None:
    """Returns what is kept of a model whose task does not state a kind."""
    output, batch = jax.eval_shape(outputs, variables, jax.eval_shape(lambda: batches[0]))
    if not jnp.issubdtype(output.dtype, jnp.floating) or output.shape[:1] != batch["mask"].shape:
        return None
    label = batch.get("label")
    is_class = (
        label is not None and math.prod(label.shape[1:]) == 1 and jnp.issubdtype(label.dtype, jnp.integer)
    )
    if is_class and output.ndim == 2 and output.shape[1] > 1:
        return Predictions.kind
    return Outputs.kind if math.prod(output.shape[1:]) * 4 <= MAX_BYTES else None


def _multi_label(collection: Collection) -> Kept | None:
    target_name = collection.kind.target

    def keep(logits_BC: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        return {"log_odds": jnp.asarray(logits_BC, jnp.float32), "label": batch[target_name]}

    if (collected := collection.collect(keep)) is None:
        return None
    common, found = collected
    label_NC = np.asarray(found["label"])
    if not np.isin(label_NC, (0, 1)).all():
        row = int(np.argwhere(~np.isin(label_NC, (0, 1)))[0, 0])
        raise UserError(f"{target_name} of row {common['index'][row]} is not 0 or 1")
    names = class_names(collection.experiment.data, label_NC.shape[1])
    return MultiLabel(**common, label=label_NC > 0, log_odds=found["log_odds"], class_names=names)


def _regression(collection: Collection) -> Kept | None:
    target_name = collection.kind.target

    def keep(output: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        target = batch[target_name]
        return {
            "output": jnp.asarray(output, jnp.float32).reshape(len(output), -1),
            "target": jnp.asarray(target, jnp.float32).reshape(len(target), -1),
        }

    if (collected := collection.collect(keep)) is None:
        return None
    common, found = collected
    size = found["output"].shape[1]
    names = tuple(map(str, getattr(collection.experiment.data, "target_names", ())))
    if len(names) != size:
        names = (target_name,) if size == 1 else tuple(f"{target_name} {d}" for d in range(size))
    return Regression(**common, **found, target_names=names)


def _reconstruction(collection: Collection) -> Kept | None:
    kind, input_name = collection.kind, collection.experiment.task.input_name

    def pair(output: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        output = jnp.asarray(output, jnp.float32)
        return {
            "input": jnp.asarray(batch[input_name], jnp.float32),
            "output": jax.nn.sigmoid(output) if kind.is_binary else output,
        }

    def error(output: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        both = pair(output, batch)
        squared = jnp.square(both["output"] - both["input"])
        return {"error": squared.reshape(len(squared), -1).mean(-1)}

    if (collected := collection.collect(error)) is None:
        return None
    common, found = collected
    shown, pairs = collection.collect_in_full(pair, common["index"], found["error"])
    return Reconstruction(**common, **found, **shown, **pairs)


def _outputs(collection: Collection) -> Kept | None:
    collected = collection.collect(lambda output, batch: {"output": jnp.asarray(output, jnp.float32)})
    if collected is None:
        return None
    common, found = collected
    return Outputs(**common, **found)


_COLLECTORS: Mapping[str, Callable[[Collection], Kept | None]] = {
    Predictions.kind: collect_classification,
    MultiLabel.kind: _multi_label,
    Regression.kind: _regression,
    Reconstruction.kind: _reconstruction,
    LanguageModel.kind: collect_language_model,
    MaskedLanguageModel.kind: collect_masked_language_model,
    SequenceToSequence.kind: collect_sequence_to_sequence,
    Tagging.kind: collect_tagging,
    Outputs.kind: _outputs,
}
