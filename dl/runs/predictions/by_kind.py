"""Collects the predictions for each kind of task: a `Kept` from the final variables and a split.

Shapes: N examples that are kept, B examples of a batch, C classes or labels, T tokens, S = T - 1, V tokens in
the vocabulary.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dl.data.permutation import random_order
from dl.data.pipeline import Batches
from dl.data.source import ArraySource
from dl.errors import UserError
from dl.experiment import Experiment
from dl.losses import NOT_COUNTED, of_tokens
from dl.runs.predictions.collect import class_names, collect_outputs, prepared_outputs_fn
from dl.runs.predictions.kept import (
    MAX_BYTES,
    Kept,
    LanguageModel,
    MultiLabel,
    Outputs,
    Predictions,
    Reconstruction,
    Regression,
)
from dl.task import Kind, following_tokens
from dl.types import Batch, Variables

MAX_SHOWN = 256  # examples that are kept in full: an eighth with the largest errors, the others at random
_SAMPLE_KEY = (0, 2**62)  # differs from the keys of epochs, (seed, epoch)


Keep = Callable[[jax.Array, Batch], dict[str, jax.Array]]
"""From a model's outputs and the preprocessed batch to what is kept of each example."""


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

    If the predictions would take more than `MAX_BYTES`, a random sample of the examples is kept, which is
    always the same.

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
    collection = _Collection(experiment, variables, batches, mesh, split, is_cut_short, outputs)
    return _COLLECTORS[name](collection)


@dataclasses.dataclass(frozen=True)
class _Collection:
    """The arguments that every kind needs to collect its predictions."""

    experiment: Experiment
    variables: Variables
    batches: Batches
    mesh: Mesh
    split: str
    is_cut_short: Callable[[], bool]
    outputs: Callable[[Variables, Batch], tuple[jax.Array, Batch]]

    @property
    def kind(self) -> Kind:
        kind = self.experiment.task.kind
        assert kind is not None
        return kind

    def collect(self, keep: Keep) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Returns the arguments of every `Kept`, and `keep` of each example; `None` after an interruption."""
        size, num_bytes = len(self.batches.source), self._bytes_per_example(keep)
        rows = np.arange(size, dtype=np.int32)
        if size * num_bytes > MAX_BYTES:
            rows = np.sort(random_order(size, *_SAMPLE_KEY)[: max(1, MAX_BYTES // num_bytes)])
        found = collect_outputs(
            self._kept(keep), self.variables, self.batches, self.mesh, rows, self.is_cut_short
        )
        if found is None:
            return None
        return {"split": self.split, "num_examples": size, "index": rows.astype(np.int32)}, found

    def collect_in_full(
        self, keep: Keep, index: np.ndarray, badness: np.ndarray
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns `shown` and `num_worst`, and `keep` of the shown examples.

        Args:
          keep: returns what is kept of each example for outputs and a preprocessed batch.
          index: the rows of the examples.
          badness: the error of each example. Those with the largest error are shown; NaN is the largest.
        """
        order = np.argsort(-np.nan_to_num(badness, nan=np.inf), kind="stable")
        num_bytes = self._bytes_per_example(keep)
        most = max(1, min(MAX_SHOWN, MAX_BYTES // num_bytes))
        num_worst = min(max(1, most // 8), len(order))
        rest = order[num_worst:]
        at_random = rest[random_order(len(rest), *_SAMPLE_KEY)[: most - num_worst]] if len(rest) else rest
        shown = np.concatenate([order[:num_worst], np.sort(at_random)]).astype(np.int32)
        source = ArraySource(self.batches.source[index[shown]])
        batches = Batches(source, self.batches.batch_size, self.mesh)
        found = collect_outputs(self._kept(keep), self.variables, batches, self.mesh)
        return {"shown": shown, "num_worst": num_worst}, found

    def _kept(self, keep: Keep) -> Callable[[Variables, Batch], dict[str, jax.Array]]:
        return lambda variables, batch: keep(*self.outputs(variables, batch))

    def _bytes_per_example(self, keep: Keep) -> int:
        batch = jax.eval_shape(lambda: self.batches[0])
        leaves = jax.eval_shape(self._kept(keep), self.variables, batch).values()
        return max(1, sum(leaf.dtype.itemsize * math.prod(leaf.shape[1:]) for leaf in leaves))


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


def _classification(collection: _Collection) -> Kept | None:
    def keep(logits_BC: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        label = batch.get("label")
        if label is None or not jnp.issubdtype(label.dtype, jnp.integer) or label.size != len(label):
            raise UserError("the data do not have an integer label for each example")
        if logits_BC.ndim != 2 or logits_BC.shape[1] < 2 or not jnp.issubdtype(logits_BC.dtype, jnp.floating):
            raise UserError(
                f"outputs of shape {logits_BC.shape} and dtype {logits_BC.dtype} are not logits of classes"
            )
        log_p_BC = jax.nn.log_softmax(jnp.asarray(logits_BC, jnp.float32))
        return {"label": label.reshape(-1), "log_probabilities": log_p_BC}

    if (collected := collection.collect(keep)) is None:
        return None
    common, found = collected
    label_N, num_classes = found["label"], found["log_probabilities"].shape[1]
    if label_N.min() < 0 or label_N.max() >= num_classes:
        is_wrong_N = (label_N < 0) | (label_N >= num_classes)
        row = int(common["index"][is_wrong_N][0])
        raise UserError(f"the label of row {row}, {label_N[is_wrong_N][0]}, is not in [0, {num_classes})")
    names = class_names(collection.experiment.data, num_classes)
    return Predictions(
        **common,
        label=label_N.astype(np.int32),
        log_probabilities=found["log_probabilities"],
        class_names=names,
    )


def _multi_label(collection: _Collection) -> Kept | None:
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


def _regression(collection: _Collection) -> Kept | None:
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


def _reconstruction(collection: _Collection) -> Kept | None:
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


def _language_model(collection: _Collection) -> Kept | None:
    kind, input_name = collection.kind, collection.experiment.task.input_name

    def measured(logits_BTV: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        targets_BT = following_tokens(batch, input_name, kind.padding_id)
        return targets_BT, *of_tokens(jnp.asarray(logits_BTV, jnp.float32), targets_BT)

    def tokens(logits_BTV: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        targets_BT, loss_BT, _, counts_BT = measured(logits_BTV, batch)
        tokens_BT = jnp.asarray(batch[input_name], jnp.int32)
        # The tokens of the row, and the last target, which is no token of the row where targets are given.
        last_B1 = jnp.where(targets_BT == NOT_COUNTED, 0, targets_BT)[:, -1:]
        token_losses_BT = jnp.where(counts_BT, loss_BT, jnp.nan)
        if "targets" not in batch:
            return {"token": tokens_BT, "token_loss": token_losses_BT[:, :-1]}
        return {"token": jnp.concatenate([tokens_BT, last_B1], 1), "token_loss": token_losses_BT}

    def sums(logits_BTV: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        _, loss_BT, is_right_BT, counts_BT = measured(logits_BTV, batch)
        return {
            "loss": jnp.where(counts_BT, loss_BT, 0.0).sum(-1),
            "num_right": (is_right_BT & counts_BT).sum(-1, dtype=jnp.int32),
            "num_tokens": counts_BT.sum(-1, dtype=jnp.int32),
        }

    if (collected := collection.collect(sums)) is None:
        return None
    common, found = collected
    per_token = found["loss"] / np.maximum(found["num_tokens"], 1)
    shown, in_full = collection.collect_in_full(tokens, common["index"], per_token)
    names = tuple(map(str, getattr(collection.experiment.data, "token_names", ())))
    if names and not in_full["token"].max(initial=0) < len(names):
        names = ()
    return LanguageModel(**common, **found, **shown, **in_full, token_names=names)


def _outputs(collection: _Collection) -> Kept | None:
    collected = collection.collect(lambda output, batch: {"output": jnp.asarray(output, jnp.float32)})
    if collected is None:
        return None
    common, found = collected
    return Outputs(**common, **found)


_COLLECTORS: Mapping[str, Callable[[_Collection], Kept | None]] = {
    Predictions.kind: _classification,
    MultiLabel.kind: _multi_label,
    Regression.kind: _regression,
    Reconstruction.kind: _reconstruction,
    LanguageModel.kind: _language_model,
    Outputs.kind: _outputs,
}
