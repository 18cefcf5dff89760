"""The outputs of a model for every example of a split, collected on the devices, in order.

Shapes: B examples of a batch.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dl.data.pipeline import Batches
from dl.experiment import Experiment
from dl.sharding import replicated
from dl.task import corrupted
from dl.types import Batch, Splits, Variables

OutputsFn = Callable[[Variables, Batch], jax.Array]


def outputs_fn(experiment: Experiment) -> OutputsFn | None:
    """Returns a function that computes the outputs of the model for variables and a stored batch.

    It calls `predict` of the task on the preprocessed batch. `None` if the task has no `predict`.
    """
    predict = experiment.task.predict
    if predict is None:
        return None

    def outputs(variables: Variables, batch: Batch) -> jax.Array:
        if experiment.preprocess is not None:
            batch = experiment.preprocess(batch)
        return predict(variables, batch)

    return outputs


def prepared_outputs_fn(
    experiment: Experiment,
) -> Callable[[Variables, Batch], tuple[jax.Array, Batch]] | None:
    """Returns a function that computes the outputs and the batch as an evaluation reads it.

    The batch is preprocessed, and corrupted if the kind of the task says so.
    """
    outputs = outputs_fn(dataclasses.replace(experiment, preprocess=None))
    if outputs is None:
        return None

    def with_prepared(variables: Variables, batch: Batch) -> tuple[jax.Array, Batch]:
        prepared = batch if experiment.preprocess is None else experiment.preprocess(batch)
        if (kind := experiment.task.kind) is not None and kind.corrupt is not None:
            prepared = corrupted(prepared, kind.corrupt)
        # A label is the number of a class here, even if preprocessing changes it.
        label = prepared.get("label")
        is_lost = "label" in batch and (label is None or not jnp.issubdtype(label.dtype, jnp.integer))
        kept = {**prepared, "label": batch["label"]} if is_lost else prepared
        return outputs(variables, prepared), kept

    return with_prepared


def collect_outputs(
    outputs: Callable[[Variables, Batch], Any],
    variables: Variables,
    batches: Batches,
    mesh: Mesh,
    rows: np.ndarray | None = None,
    is_cut_short: Callable[[], bool] = lambda: False,
) -> Any:
    """Computes the outputs for a split on the host, in the order of its rows, without padding.

    Args:
      outputs: returns an array or a tree of arrays, with one row for each example of a stored batch.
      variables: the variables of the model, on the devices.
      batches: the batches of the split, in the order of its rows (`seed` is `None`).
      mesh: the devices. Every process gets all outputs.
      rows: the rows that are kept, in increasing order. `None` means all rows.
      is_cut_short: called after each batch. If it returns True, the function returns `None`.
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


def class_names(data: Splits, num_classes: int) -> tuple[str, ...]:
    """Returns the names of the classes in the data, or "0", "1", … if the data do not name them."""
    names = tuple(map(str, getattr(data, "class_names", ())))
    return names if len(names) == num_classes else tuple(map(str, range(num_classes)))
