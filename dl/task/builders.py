"""Builders of tasks: each one makes a task from a model and a loss.

Each builder states the kind of its task, except `supervised`, which accepts any loss per example.

Shapes: B examples, C classes or labels, D outputs.

A long file, because the builders are to be read beside each other.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dl import losses
from dl.errors import UserError
from dl.labels import watch
from dl.metrics import Mean, accuracy
from dl.ranges import PROBABILITY, check
from dl.task.adapters import as_model
from dl.task.contract import FRACTION, Kind, Task
from dl.task.model import AnyModel, Inputs
from dl.types import SEGMENT_IDS, Augment, Aux, Batch, Key, Metrics, ModelState, Params, Variables

Measure = Callable[[jax.Array, Batch], tuple[Mean, Metrics]]
"""A function from the outputs and the batch to the loss and the metrics."""


def task_of(
    model: AnyModel,
    measure: Measure,
    input_name: str,
    kind: Kind | None = None,
    inputs_of: Callable[[Batch], Inputs] | None = None,
) -> Task:
    """Returns the task of a model that reads features of a batch.

    Args:
      model: model in one of the forms that `as_model` accepts.
      measure: function that computes the loss and the metrics.
      input_name: name of the feature that the model reads.
      kind: kind of the task. If it states `corrupt`, examples are corrupted in evaluation.
      inputs_of: function from a batch to what the model reads. `None` means the feature `input_name` and, if
        the batch has them, its `segment_ids`.
    """
    functions = as_model(model)
    read = inputs_of or reads(input_name, SEGMENT_IDS)
    corrupt = None if kind is None else kind.corrupt

    def init(key: Key, batch: Batch) -> Variables:
        return functions.init(key, read(batch if corrupt is None else corrupted(batch, corrupt)))

    def loss(params: Params, model_state: ModelState, batch: Batch, key: Key | None) -> tuple[Mean, Aux]:
        stored = batch
        if kind is not None and corrupt is not None and (key is None or kind.target not in batch):
            batch = corrupted(batch, corrupt)
        outputs, model_state = functions.apply(params, model_state, read(batch), key)
        if corrupt is not None and input_name in stored:
            watch(stored[input_name], outputs.shape[-1])
        mean, metrics = measure(outputs, batch)
        return mean, Aux(model_state, metrics)

    def predict(variables: Variables, batch: Batch) -> jax.Array:
        model_state = {name: collection for name, collection in variables.items() if name != "params"}
        return functions.apply(variables.get("params", {}), model_state, read(batch), None)[0]

    intermediates = None
    if (sown := functions.intermediates) is not None:
        intermediates = lambda variables, batch: sown(variables, read(batch))  # noqa: E731
    rules = functions.sharding_rules
    return Task(init, loss, predict, kind, input_name, functions.decoder, intermediates, rules)


def reads(*names: str) -> Callable[[Batch], Inputs]:
    """Returns the function from a batch to the features that a model reads, in the order of its arguments.

    A batch must have the first feature. The others are None where it does not have them.
    """

    def inputs_of(batch: Batch) -> Inputs:
        first, *more = names
        array = feature(
            batch, first, " for the model to read", ": set the argument input_name to one of them"
        )
        arrays = [batch.get(name) for name in more]
        return array if all(x is None for x in arrays) else (array, *arrays)

    return inputs_of


def corrupted(batch: Batch, corrupt: Augment) -> Batch:
    """Returns a batch whose examples are corrupted, always in the same way.

    The random key of an example is `fold_in(key(0), index)`.

    Args:
      batch: the batch, with the feature `index`.
      corrupt: function from a random key and one example to a corrupted example.
    """
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), batch["index"])
    return jax.vmap(corrupt)(keys_B, batch)


def supervised(
    model: AnyModel,
    example_loss: Callable[[jax.Array, Batch], jax.Array],
    example_metrics: Callable[[jax.Array, Batch], Metrics] | None = None,
    *,
    input_name: str = "image",
) -> Task:
    """Returns the task to minimise the mean of a per-example loss of the model's outputs.

    Args:
      model: model that reads `batch[input_name]`, in one of the forms that `as_model` accepts.
      example_loss: function from the outputs and the batch to one loss per example, shape B.
      example_metrics: function from the outputs and the batch to more metrics, as masked `Mean`s. A metric
        `loss` among them replaces the default metric `loss`, the mean of `example_loss`.
      input_name: name of the feature that the model reads.

    Raises:
      ValueError: `example_loss` returns another shape than B.
      TypeError: a metric is not a `Mean`.
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
                f"(model output {output.shape}); return one loss per example, shape {batch['mask'].shape}"
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

    return task_of(model, measure, input_name, kind)


def classification(model: AnyModel, *, label_smoothing: float = 0.0, input_name: str = "image") -> Task:
    """Returns the task to minimise the mean cross-entropy of a classifier, in nats per example.

    Metrics: `loss` and `accuracy`. Training minimises the loss with `label_smoothing`. The metric `loss` is
    always the cross-entropy without it, so that curves of training, evaluation and other experiments can be
    compared.

    A model of text reads the feature `tokens`. It gets `segment_ids`, shape B × T, 0 at padding, as its
    second argument if the data have this feature.

    If a batch has soft labels, a feature `target` of shape B × C such as `mixing.mixup` makes, they are used
    instead of `label`. The accuracy is then the probability of the predicted class in the target.

    Args:
      model: model that reads `batch[input_name]` and returns logits, shape B × C.
      label_smoothing: share of each target that is spread evenly over all classes, in [0, 1]; see
        `losses.cross_entropy`.
      input_name: name of the feature that the model reads.

    Raises:
      UserError: `label_smoothing` is out of range.
      ValueError: the logits have another shape, when the loss is computed.
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
    """Returns the task to predict independent labels. An example may have any number of them.

    The loss is the mean of -y log p - (1 - y) log(1 - p) over the C labels, in nats per label, where p is the
    sigmoid of the output. PyTorch's `BCEWithLogitsLoss` and Keras' `BinaryCrossentropy` average in the same
    way. A label is predicted if p > ½. Metrics: `loss`; `label_accuracy`, the fraction of the labels of an
    example that are right; `exact_match`, the fraction of examples whose labels are all right.

    Args:
      model: model that reads `batch[input_name]` and returns logits, shape B × C.
      input_name: name of the feature that the model reads.
      target_name: name of the feature that holds the labels, 0 or 1, shape B × C.

    Raises:
      ValueError: logits and labels differ in shape, when the loss is computed.
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
    """Returns the task to minimise the mean of a per-example loss of outputs and targets.

    Targets have the shape of the model's output, B × D. If D is 1, either may have the shape B. Metrics:
    `loss` and `mean_absolute_error`, the mean of |output - target| over D.

    Args:
      model: model that reads `batch[input_name]`.
      example_loss: function from outputs and targets to one loss per example, shape B.
      input_name: name of the feature that the model reads.
      target_name: name of the feature that the outputs are compared with.

    Raises:
      ValueError: outputs and targets differ in shape, when the loss is computed.
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
    """Returns the task to reconstruct the input, as it is after preprocessing.

    Metrics: `loss`, the mean of (output - input)² over the values of an example. If `is_binary` is set, the
    outputs are logits of values in [0, 1]. Then `loss` is the cross-entropy in nats per value, and there is a
    metric `mean_squared_error` of the sigmoid of the outputs.

    Args:
      model: model that reads `batch[input_name]`. Its output has the shape of its input.
      is_binary: whether the outputs are logits.
      input_name: name of the feature that the model reads and reconstructs.

    Raises:
      ValueError: outputs and inputs differ in shape, when the loss is computed.
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


def _labels(batch: Batch) -> jax.Array:
    return batch["target"] if "target" in batch else feature(batch, "label", ", the class of each example")


def feature(batch: Batch, name: str, purpose: str = ", which the task reads", advice: str = "") -> jax.Array:
    """Returns a feature of a batch.

    Args:
      batch: the batch.
      name: name of the feature.
      purpose: what the error says after the name.
      advice: what the error says last.

    Raises:
      UserError: the batch does not have it.
    """
    if name not in batch:
        known = ", ".join(feature for feature in batch if feature not in ("index", "mask"))
        raise UserError(f"the data have no feature {name}{purpose}; they have {known}{advice}")
    return batch[name]
