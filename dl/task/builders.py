"""The builders: a task of a model, for each way of judging its outputs.

Each states the kind of its task, except `supervised`, which takes any loss of an example. The names `loss`,
`accuracy` and so on are those of the metrics.

Shapes: B examples, C classes or labels, D outputs, T tokens of a sequence, S = T - 1 tokens that are
predicted, V tokens of the vocabulary.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dl import losses
from dl.errors import UserError
from dl.metrics import Mean, accuracy
from dl.ranges import PROBABILITY, check
from dl.task.adapters import as_model
from dl.task.contract import FRACTION, Kind, Task
from dl.task.model import AnyModel
from dl.types import Aux, Batch, Key, Metrics, ModelState, Params, Variables

Measure = Callable[[jax.Array, Batch], tuple[Mean, Metrics]]
"""From the outputs and the batch to the loss and its metrics."""


def _task_of(model: AnyModel, measure: Measure, input_name: str, kind: Kind | None = None) -> Task:
    """Returns the task of a model that reads one feature and whose outputs are measured."""
    functions = as_model(model)

    def inputs_of(batch: Batch) -> jax.Array:
        if input_name not in batch:
            known = ", ".join(name for name in batch if name not in ("index", "mask"))
            raise UserError(
                f"the data have no feature {input_name} for the model to read; they have {known}: name one to"
                " the task, input_name="
            )
        return batch[input_name]

    def init(key: Key, batch: Batch) -> Variables:
        return functions.init(key, inputs_of(batch))

    def loss(params: Params, model_state: ModelState, batch: Batch, key: Key | None) -> tuple[Mean, Aux]:
        outputs, model_state = functions.apply(params, model_state, inputs_of(batch), key)
        mean, metrics = measure(outputs, batch)
        return mean, Aux(model_state, metrics)

    def predict(variables: Variables, batch: Batch) -> jax.Array:
        model_state = {name: collection for name, collection in variables.items() if name != "params"}
        return functions.apply(variables.get("params", {}), model_state, inputs_of(batch), None)[0]

    return Task(init, loss, predict, kind, input_name)


def supervised(
    model: AnyModel,
    example_loss: Callable[[jax.Array, Batch], jax.Array],
    example_metrics: Callable[[jax.Array, Batch], Metrics] | None = None,
    *,
    input_name: str = "image",
) -> Task:
    """Returns the task to minimise the mean of a per-example loss of the model's outputs.

    Args:
      model: reads `batch[input_name]`; `as_model` says what a model is.
      example_loss: from the outputs and the batch to one loss per example, shape B.
      example_metrics: more metrics, as masked `Mean`s; a `loss` among them replaces the one that is
        there by default, the mean of `example_loss`.
      input_name: the feature that the model reads.
    """
    return _supervised(model, example_loss, example_metrics, input_name, None)


def _supervised(
    model: AnyModel,
    example_loss: Callable[[jax.Array, Batch], jax.Array],
    example_metrics: Callable[[jax.Array, Batch], Metrics] | None,
    input_name: str,
    kind: Kind | None,
) -> Task:
    def measure(output: jax.Array, batch: Batch) -> tuple[Mean, Metrics]:
        loss_B = example_loss(output, batch)
        if jnp.shape(loss_B) != batch["mask"].shape:
            raise UserError(
                f"example_loss returned the shape {jnp.shape(loss_B)} for {len(batch['mask'])} examples "
                f"(model output {output.shape}); it must be one loss an example, {batch['mask'].shape}"
            )
        loss = Mean.of(loss_B, batch["mask"], better="min")
        metrics = {"loss": loss}
        if example_metrics is not None:
            metrics |= example_metrics(output, batch)
        for name, metric in metrics.items():
            if not isinstance(metric, Mean):
                raise UserError(
                    f"the metric {name} is not a dl.metrics.Mean; make it by Mean.of(values, mask)"
                )
        return loss, metrics

    return _task_of(model, measure, input_name, kind)


def classification(model: AnyModel, *, label_smoothing: float = 0.0, input_name: str = "image") -> Task:
    """Returns the task to minimise the mean cross-entropy of a classifier, in nats an example.

    Metrics: `loss` and `accuracy`. With `label_smoothing` the gradient is of the smoothed loss; the metric
    `loss` is always the plain cross-entropy, so that curves of training, evaluation and other experiments can
    be compared.

    A batch with soft labels, `target` of shape B × C (`mixing.mixup` makes them), is measured by those
    instead of `label`: its accuracy is the share of the target that lies on the predicted class.

    Args:
      model: reads `batch[input_name]`; its outputs are logits, shape B × C.
      label_smoothing: in [0, 1]; see `losses.cross_entropy`.
      input_name: the feature that the model reads.
    """
    check("label_smoothing", label_smoothing, PROBABILITY)

    def example_loss(logits_BC: jax.Array, batch: Batch) -> jax.Array:
        if logits_BC.ndim != 2:
            raise UserError(
                f"a classifier's logits have shape (batch, classes), got {logits_BC.shape}; "
                "is a flatten or a pooling missing before the last layer?"
            )
        if len(logits_BC) != len(batch["mask"]):
            raise UserError(
                f"the model made {len(logits_BC)} rows of logits from {len(batch['mask'])} examples; does it "
                "reshape by (-1, ...)? state the batch size: x.reshape(x.shape[0], -1)"
            )
        return losses.cross_entropy(logits_BC, _labels(batch), label_smoothing)

    def example_metrics(logits_BC: jax.Array, batch: Batch) -> Metrics:
        labels = _labels(batch)
        return {
            "loss": Mean.of(losses.cross_entropy(logits_BC, labels), batch["mask"], better="min"),
            "accuracy": accuracy(logits_BC, labels, batch["mask"]),
        }

    kind = Kind("classification", "label", {"loss": "nats", "accuracy": FRACTION}, "accuracy")
    return _supervised(model, example_loss, example_metrics, input_name, kind)


def multi_label(model: AnyModel, *, input_name: str = "image", target_name: str = "label") -> Task:
    """Returns the task to predict independent labels, of which an example may have any number.

    The loss is the mean over the C labels of -y log p - (1 - y) log(1 - p), p the sigmoid of the output: nats
    a label, as PyTorch's `BCEWithLogitsLoss` and Keras' `BinaryCrossentropy` average. A label is predicted
    where p > ½. Metrics: `loss`; `label_accuracy`, the share of an example's labels that are right;
    `exact_match`, whether all of them are.

    Args:
      model: reads `batch[input_name]`; its outputs are logits, shape B × C.
      input_name: the feature that the model reads.
      target_name: the feature with the labels, 0 or 1, shape B × C.
    """

    def labels(logits_BC: jax.Array, batch: Batch) -> jax.Array:
        labels_BC = batch[target_name]
        if logits_BC.ndim != 2 or logits_BC.shape != labels_BC.shape:
            raise UserError(
                f"logits of shape {logits_BC.shape} and {target_name} of shape {labels_BC.shape} differ; "
                "both must be (batch, labels)"
            )
        return jnp.asarray(labels_BC, logits_BC.dtype)

    def example_loss(logits_BC: jax.Array, batch: Batch) -> jax.Array:
        return losses.binary_cross_entropy(logits_BC, labels(logits_BC, batch)) / logits_BC.shape[-1]

    def example_metrics(logits_BC: jax.Array, batch: Batch) -> Metrics:
        is_right_BC = (logits_BC > 0) == (labels(logits_BC, batch) > 0.5)
        return {
            "label_accuracy": Mean.of(is_right_BC.mean(-1), batch["mask"], better="max"),
            "exact_match": Mean.of(is_right_BC.all(-1), batch["mask"], better="max"),
        }

    units = {"loss": "nats a label", "label_accuracy": FRACTION, "exact_match": FRACTION}
    kind = Kind("multi_label", target_name, units, "label_accuracy")
    return _supervised(model, example_loss, example_metrics, input_name, kind)


def regression(
    model: AnyModel,
    example_loss: Callable[[jax.Array, jax.Array], jax.Array] = losses.mean_squared_error,
    *,
    input_name: str = "image",
    target_name: str = "target",
) -> Task:
    """Returns the task to minimise the mean of a per-example loss of outputs against targets.

    Targets have the shape of the model's output, B × D; where D is 1, either may have the shape B. Metrics:
    `loss` and `mean_absolute_error`, the mean of |output - target| over D.

    Args:
      model: reads `batch[input_name]`.
      example_loss: from outputs and targets to one loss per example, shape B.
      input_name: the feature that the model reads.
      target_name: the feature that the outputs are compared with.
    """

    def pair(output_BD: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        output_BD, target_BD = (x[:, None] if x.ndim == 1 else x for x in (output_BD, batch[target_name]))
        return output_BD, target_BD

    def loss_of_batch(output_BD: jax.Array, batch: Batch) -> jax.Array:
        return example_loss(*pair(output_BD, batch))

    def example_metrics(output_BD: jax.Array, batch: Batch) -> Metrics:
        error_B = losses.mean_absolute_error(*pair(output_BD, batch))
        return {"mean_absolute_error": Mean.of(error_B, batch["mask"], better="min")}

    stated: list[tuple[Any, str]] = [
        (losses.mean_squared_error, "squared error"),
        (losses.half_squared_error, "half the squared error"),
    ]
    unit = next((unit for loss, unit in stated if loss is example_loss), "value")
    units = {"loss": unit, "mean_absolute_error": "units of the target"}
    kind = Kind("regression", target_name, units, "mean_absolute_error")
    return _supervised(model, loss_of_batch, example_metrics, input_name, kind)


def autoencoder(model: AnyModel, *, is_binary: bool = False, input_name: str = "image") -> Task:
    """Returns the task to give the input back, as it was after preprocessing.

    Metrics: `loss`, the mean of (output - input)² over the values of an example. With `is_binary` the outputs
    are logits of values in [0, 1]: `loss` is the cross-entropy, nats a value, and `mean_squared_error` that
    of the sigmoid.

    Args:
      model: reads `batch[input_name]`; its output has the shape of its input.
      is_binary: whether the outputs are logits.
      input_name: the feature that the model reads and gives back.
    """

    def example_loss(output: jax.Array, batch: Batch) -> jax.Array:
        error = losses.mean_binary_cross_entropy if is_binary else losses.mean_squared_error
        return error(output, batch[input_name])

    def example_metrics(output: jax.Array, batch: Batch) -> Metrics:
        error_B = losses.mean_squared_error(jax.nn.sigmoid(output), batch[input_name])
        return {"mean_squared_error": Mean.of(error_B, batch["mask"], better="min")}

    units = {"loss": "nats a value", "mean_squared_error": "squared error"}
    kind = Kind(
        "reconstruction",
        input_name,
        units if is_binary else {"loss": "squared error"},
        "loss",
        is_binary=is_binary,
    )
    return _supervised(model, example_loss, example_metrics if is_binary else None, input_name, kind)


def language_model(model: AnyModel, *, padding_id: int | None = None, input_name: str = "tokens") -> Task:
    """Returns the task to predict each next token, given those before it: cross-entropy, nats a token.

    The mean is over all tokens of a batch that are predicted, so that long sequences weigh more than short
    ones. Metrics: `loss` and `accuracy`, the share of tokens whose prediction is right.

    Args:
      model: reads tokens, integers of shape B × T; its outputs are logits, shape B × T × V. Those at t
        predict the token at t + 1, and must not depend on later tokens.
      padding_id: the token that fills up short sequences and is never counted.
      input_name: the feature with the tokens, which no preprocessing of pixels touches.
    """

    def measure(logits_BTV: jax.Array, batch: Batch) -> tuple[Mean, Metrics]:
        loss_BS, is_right_BS, counts_BS = losses.next_token(logits_BTV, batch[input_name], padding_id)
        mask_BS = counts_BS & batch["mask"][:, None]
        loss = Mean.of(loss_BS, mask_BS, better="min")
        return loss, {"loss": loss, "accuracy": Mean.of(is_right_BS, mask_BS, better="max")}

    units = {"loss": "nats a token", "accuracy": FRACTION}
    kind = Kind("language_model", input_name, units, "loss", padding_id=padding_id)
    return _task_of(model, measure, input_name, kind)


def _labels(batch: Batch) -> jax.Array:
    if "target" in batch:
        return batch["target"]
    if "label" not in batch:
        known = ", ".join(name for name in batch if name not in ("index", "mask"))
        raise UserError(f"the data have no feature label, the class of each example; they have {known}")
    return batch["label"]
