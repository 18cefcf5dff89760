"""Collects the predictions of classifiers: all log-probabilities, or the outcomes where those are too many.

Shapes: N examples that are kept, B examples of a batch, C classes.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dl.errors import UserError
from dl.evaluation.outcomes import Outcomes
from dl.runs.predictions.collect import class_names
from dl.runs.predictions.collection import Collection
from dl.runs.predictions.kept import ClassificationOutcomes, Kept, Predictions
from dl.types import Batch

MAX_FULL_BYTES = 16 * 2**20
"""The largest size of the log-probabilities of a split that are kept. Of more, the outcomes are kept."""


def collect_classification(collection: Collection) -> Kept | None:
    """Returns the predictions of a classifier."""
    num_bytes = len(collection.batches.source) * collection.bytes_per_example(_all_classes)
    num_classes = collection.shapes(_all_classes)["log_probabilities"].shape[1]
    is_full = num_bytes <= MAX_FULL_BYTES
    if (collected := collection.collect(_all_classes if is_full else _outcomes)) is None:
        return None
    common, found = collected
    label_N = found["label"]
    if label_N.min() < 0 or label_N.max() >= num_classes:
        is_wrong_N = (label_N < 0) | (label_N >= num_classes)
        row = int(common["index"][is_wrong_N][0])
        raise UserError(f"the label of row {row}, {label_N[is_wrong_N][0]}, is not in [0, {num_classes})")
    kept: dict[str, Any] = {**common, **found, "label": label_N.astype(np.int32)}
    names = class_names(collection.experiment.data, num_classes)
    return (Predictions if is_full else ClassificationOutcomes)(**kept, class_names=names)


def _all_classes(logits_BC: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    label = batch.get("label")
    if label is None or not jnp.issubdtype(label.dtype, jnp.integer) or label.size != len(label):
        raise UserError("the data do not have an integer label for each example")
    if logits_BC.ndim != 2 or logits_BC.shape[1] < 2 or not jnp.issubdtype(logits_BC.dtype, jnp.floating):
        raise UserError(
            f"outputs of shape {logits_BC.shape} and dtype {logits_BC.dtype} are not logits of classes"
        )
    log_p_BC = jax.nn.log_softmax(jnp.asarray(logits_BC, jnp.float32))
    return {"label": label.reshape(-1), "log_probabilities": log_p_BC}


def _outcomes(logits_BC: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    found = _all_classes(logits_BC, batch)
    outcomes = vars(Outcomes.of(found["log_probabilities"], found["label"]))
    return {**outcomes, "label": found["label"]}
