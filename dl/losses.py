"""Loss functions, and the builders that turn a model into a `LossFn`.

Each builder states the kind of its task (`kinds.Kind`); a loss function written by hand, or by `supervised`,
states none. Longer than other files, because the builders are to be read beside each other.

Shapes: B examples, C classes or labels, D outputs, T tokens of a sequence, V tokens of the vocabulary.
"""

import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from dl.kinds import FRACTION, Kind, StatedLoss
from dl.labels import class_labels
from dl.metrics import Mean, accuracy
from dl.ranges import PROBABILITY, check
from dl.types import Aux, Batch, Key, LossFn, Metrics, ModelState, Params


def cross_entropy(logits_BC: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Returns -log softmax(logits)[label] per example, in nats, shape B.

    From logits, by log-sum-exp: exact at any magnitude.

    Args:
      logits_BC: unnormalised log-probabilities.
      labels: the classes, shape B or B × 1, or distributions over them, shape B × C:
        -Σ target log softmax(logits).
      label_smoothing: e; the target is (1 - e) on the label plus e / C everywhere (Szegedy et al. 2016, 7).
    """
    labels = class_labels(labels, logits_BC)
    is_soft = labels.ndim == logits_BC.ndim
    if not is_soft and not label_smoothing:
        return optax.softmax_cross_entropy_with_integer_labels(logits_BC, labels)
    targets_BC = labels if is_soft else jax.nn.one_hot(labels, logits_BC.shape[-1])
    if label_smoothing:
        targets_BC = optax.smooth_labels(targets_BC, label_smoothing)
    return optax.softmax_cross_entropy(logits_BC, targets_BC)


def binary_cross_entropy(logits_BC: jax.Array, targets_BC: jax.Array) -> jax.Array:
    """Returns the cross-entropy of independent sigmoids, summed over C, in nats, shape B.

    Both halves: -y log p - (1 - y) log(1 - p).
    """
    return optax.sigmoid_binary_cross_entropy(logits_BC, targets_BC).sum(-1)


def half_squared_error(output_BD: jax.Array, target_BD: jax.Array) -> jax.Array:
    """Returns ½ Σ (output - target)² over D per example, shape B; its gradient is output - target."""
    return jnp.square(_difference(output_BD, target_BD)).sum(-1) / 2


def mean_squared_error(output_BD: jax.Array, target_BD: jax.Array) -> jax.Array:
    """Returns the mean of (output - target)² over D per example, shape B."""
    return jnp.square(_difference(output_BD, target_BD)).mean(-1)


def _difference(output_BD: jax.Array, target_BD: jax.Array) -> jax.Array:
    if output_BD.shape != target_BD.shape:  # (B, 1) and (B,) would broadcast to all pairs of examples
        raise ValueError(f"outputs of shape {output_BD.shape} and targets of shape {target_BD.shape} differ")
    return output_BD - target_BD


def apply_model(
    model: nn.Module, params: Params, model_state: ModelState, inputs: jax.Array, key: Key | None
) -> tuple[jax.Array, ModelState]:
    """Returns the model's output and its updated collections.

    In training (`key` is given) the collections of `model_state` may change and the `dropout` stream
    is `key`; in evaluation neither. A model without dropout or statistics needs no argument `train`.
    """
    variables = {"params": params, **model_state}
    mode: dict[str, Any] = {"train": key is not None} if _takes_train(model) else {}
    if key is None:
        return jnp.asarray(model.apply(variables, inputs, **mode)), model_state
    output, model_state = model.apply(
        variables, inputs, **mode, rngs={"dropout": key}, mutable=list(model_state)
    )
    return jnp.asarray(output), model_state


def _takes_train(model: nn.Module) -> bool:
    parameters = inspect.signature(type(model).__call__).parameters.values()
    return any(p.name == "train" or p.kind is p.VAR_KEYWORD for p in parameters)


def supervised(
    model: nn.Module,
    example_loss: Callable[[jax.Array, Batch], jax.Array],
    example_metrics: Callable[[jax.Array, Batch], Metrics] | None = None,
    input_name: str = "image",
) -> LossFn:
    """Returns the mean of a per-example loss of the model's output, for any supervised task.

    Args:
      model: called as `model(batch[input_name], train=...)`; one without `train` as `model(...)`.
      example_loss: from the output and the batch to one loss per example, shape B.
      example_metrics: more metrics, as masked `Mean`s; a `loss` among them replaces the one that is
        there by default, the mean of `example_loss`.
      input_name: the feature that the model reads.
    """

    def loss_fn(
        params: Params, model_state: ModelState, batch: Batch, key: Key | None
    ) -> tuple[jax.Array, Aux]:
        output, model_state = apply_model(model, params, model_state, batch[input_name], key)
        loss_B = example_loss(output, batch)
        if jnp.shape(loss_B) != batch["mask"].shape:
            raise ValueError(
                f"example_loss returned the shape {jnp.shape(loss_B)} for {len(batch['mask'])} examples "
                f"(model output {output.shape}); it must be one loss an example, {batch['mask'].shape}"
            )
        loss = Mean.of(loss_B, batch["mask"], better="min")
        metrics = {"loss": loss}
        if example_metrics is not None:
            metrics |= example_metrics(output, batch)
        for name, metric in metrics.items():
            if not isinstance(metric, Mean):
                raise TypeError(f"the metric {name} is no dl.metrics.Mean; make it by Mean.of(values, mask)")
        return loss.compute(), Aux(model_state, metrics)

    return loss_fn


def classification(model: nn.Module, *, label_smoothing: float = 0.0, input_name: str = "image") -> LossFn:
    """Returns the mean cross-entropy of a classifier, with the metrics `loss` and `accuracy`.

    With `label_smoothing` the gradient is of the smoothed loss; the metric `loss` is always the plain
    cross-entropy, so that curves of training, evaluation and other experiments can be compared.

    A batch with soft labels, `target` of shape B × C (`mixing.mixup` makes them), is measured by those
    instead of `label`: its accuracy is the share of the target that lies on the predicted class.
    """
    check("label_smoothing", label_smoothing, PROBABILITY)

    def example_loss(logits_BC: jax.Array, batch: Batch) -> jax.Array:
        if logits_BC.ndim != 2:
            raise ValueError(
                f"a classifier's logits have shape (batch, classes), got {logits_BC.shape}; "
                "is a flatten or a pooling missing before the last layer?"
            )
        if len(logits_BC) != len(batch["mask"]):
            raise ValueError(
                f"the model made {len(logits_BC)} rows of logits from {len(batch['mask'])} examples; does it "
                "reshape by (-1, ...)? state the batch size: x.reshape(x.shape[0], -1)"
            )
        return cross_entropy(logits_BC, _labels(batch), label_smoothing)

    def example_metrics(logits_BC: jax.Array, batch: Batch) -> Metrics:
        labels = _labels(batch)
        return {
            "loss": Mean.of(cross_entropy(logits_BC, labels), batch["mask"], better="min"),
            "accuracy": accuracy(logits_BC, labels, batch["mask"]),
        }

    kind = Kind("classification", input_name, "label", {"loss": "nats", "accuracy": FRACTION}, "accuracy")
    return StatedLoss(supervised(model, example_loss, example_metrics, input_name), kind)


def multi_label(model: nn.Module, *, input_name: str = "image", target_name: str = "label") -> LossFn:
    """Returns the mean cross-entropy of independent labels, of which an example may have any number.

    The loss is the mean over the C labels of -y log p - (1 - y) log(1 - p), p the sigmoid of the output: nats
    a label, as PyTorch's `BCEWithLogitsLoss` and Keras' `BinaryCrossentropy` average. A label is predicted
    where p > ½. Metrics: `loss`; `label_accuracy`, the share of an example's labels that are right;
    `exact_match`, whether all of them are.

    Args:
      model: called as in `supervised`; its outputs are logits, shape B × C.
      input_name: the feature that the model reads.
      target_name: the feature with the labels, 0 or 1, shape B × C.
    """

    def labels(logits_BC: jax.Array, batch: Batch) -> jax.Array:
        labels_BC = batch[target_name]
        if logits_BC.ndim != 2 or logits_BC.shape != labels_BC.shape:
            raise ValueError(
                f"logits of shape {logits_BC.shape} and {target_name} of shape {labels_BC.shape} differ; "
                "both must be (batch, labels)"
            )
        return jnp.asarray(labels_BC, logits_BC.dtype)

    def example_loss(logits_BC: jax.Array, batch: Batch) -> jax.Array:
        return binary_cross_entropy(logits_BC, labels(logits_BC, batch)) / logits_BC.shape[-1]

    def example_metrics(logits_BC: jax.Array, batch: Batch) -> Metrics:
        is_right_BC = (logits_BC > 0) == (labels(logits_BC, batch) > 0.5)
        return {
            "label_accuracy": Mean.of(is_right_BC.mean(-1), batch["mask"], better="max"),
            "exact_match": Mean.of(is_right_BC.all(-1), batch["mask"], better="max"),
        }

    units = {"loss": "nats a label", "label_accuracy": FRACTION, "exact_match": FRACTION}
    kind = Kind("multi_label", input_name, target_name, units, "label_accuracy")
    return StatedLoss(supervised(model, example_loss, example_metrics, input_name), kind)


def regression(
    model: nn.Module,
    example_loss: Callable[[jax.Array, jax.Array], jax.Array] = mean_squared_error,
    *,
    input_name: str = "image",
    target_name: str = "target",
) -> LossFn:
    """Returns the mean of a per-example loss of outputs against targets.

    Targets have the shape of the model's output, B × D; where D is 1, either may have the shape B. Metrics:
    `loss` and `mean_absolute_error`, the mean of |output - target| over D.

    Args:
      model: called as in `supervised`.
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
        error_BD = jnp.abs(_difference(*pair(output_BD, batch)))
        return {"mean_absolute_error": Mean.of(_mean_of_example(error_BD), batch["mask"], better="min")}

    stated: list[tuple[Any, str]] = [
        (mean_squared_error, "squared error"),
        (half_squared_error, "half the squared error"),
    ]
    unit = next((unit for loss, unit in stated if loss is example_loss), "value")
    units = {"loss": unit, "mean_absolute_error": "units of the target"}
    kind = Kind("regression", input_name, target_name, units, "mean_absolute_error")
    return StatedLoss(supervised(model, loss_of_batch, example_metrics, input_name), kind)


def autoencoder(model: nn.Module, *, is_binary: bool = False, input_name: str = "image") -> LossFn:
    """Returns the mean error with which a model gives its input back, as it was after preprocessing.

    Metrics: `loss`, the mean of (output - input)² over the values of an example. With `is_binary` the outputs
    are logits of values in [0, 1]: `loss` is the cross-entropy, nats a value, and `mean_squared_error` that
    of the sigmoid.

    Args:
      model: called as in `supervised`; its output has the shape of its input.
      is_binary: whether the outputs are logits.
      input_name: the feature that the model reads and gives back.
    """

    def squared_error(output: jax.Array, batch: Batch) -> jax.Array:
        value = jax.nn.sigmoid(output) if is_binary else output
        return _mean_of_example(jnp.square(_difference(value, batch[input_name])))

    def example_loss(output: jax.Array, batch: Batch) -> jax.Array:
        if not is_binary:
            return squared_error(output, batch)
        _difference(output, batch[input_name])  # refuses other shapes
        return _mean_of_example(optax.sigmoid_binary_cross_entropy(output, batch[input_name]))

    def example_metrics(output: jax.Array, batch: Batch) -> Metrics:
        return {"mean_squared_error": Mean.of(squared_error(output, batch), batch["mask"], better="min")}

    units = {"loss": "nats a value", "mean_squared_error": "squared error"}
    kind = Kind(
        "reconstruction",
        input_name,
        input_name,
        units if is_binary else {"loss": "squared error"},
        "loss",
        is_binary=is_binary,
    )
    return StatedLoss(
        supervised(model, example_loss, example_metrics if is_binary else None, input_name), kind
    )


def next_token(
    logits_BTV: jax.Array, tokens_BT: jax.Array, padding_id: int | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns of each token but the first its cross-entropy in nats, whether it is predicted, if it counts.

    Each of shape B × (T - 1). Logits at t predict the token at t + 1; they must not depend on later tokens.

    Args:
      logits_BTV: the model's output for the whole sequences.
      tokens_BT: integers in [0, V).
      padding_id: the token that does not count.
    """
    if logits_BTV.ndim != 3 or logits_BTV.shape[:2] != tokens_BT.shape or tokens_BT.shape[1] < 2:
        raise ValueError(
            f"a language model's logits have shape (batch, tokens, vocabulary), got {logits_BTV.shape} for "
            f"tokens of shape {tokens_BT.shape}; there must be at least two tokens"
        )
    next_BS = jnp.asarray(tokens_BT[:, 1:], jnp.int32)
    logits_BSV = logits_BTV[:, :-1]
    counts_BS = jnp.ones(next_BS.shape, bool) if padding_id is None else next_BS != padding_id
    return cross_entropy(logits_BSV, next_BS), logits_BSV.argmax(-1) == next_BS, counts_BS


def language_model(model: nn.Module, *, padding_id: int | None = None, input_name: str = "tokens") -> LossFn:
    """Returns the mean cross-entropy of each next token, given those before it: nats a token.

    The mean is over all tokens of a batch that are predicted, so that long sequences weigh more than short
    ones. (Under `accumulated_gradient` with padding the mean is over the sequences of a micro-batch first.)
    Metrics: `loss` and `accuracy`, the share of tokens whose prediction is right.

    Args:
      model: called as in `supervised` with tokens, integers of shape B × T; its outputs are logits, shape
        B × T × V. Those at t predict the token at t + 1, and must not depend on later tokens.
      padding_id: the token that fills up short sequences and is never counted.
      input_name: the feature with the tokens, which no preprocessing of pixels touches.
    """

    def loss_fn(
        params: Params, model_state: ModelState, batch: Batch, key: Key | None
    ) -> tuple[jax.Array, Aux]:
        tokens_BT = batch[input_name]
        logits_BTV, model_state = apply_model(model, params, model_state, tokens_BT, key)
        loss_BS, is_right_BS, counts_BS = next_token(logits_BTV, tokens_BT, padding_id)
        mask_BS = counts_BS & batch["mask"][:, None]
        loss = Mean.of(loss_BS, mask_BS, better="min")
        is_right = Mean.of(is_right_BS, mask_BS, better="max")
        return loss.compute(), Aux(model_state, {"loss": loss, "accuracy": is_right})

    units = {"loss": "nats a token", "accuracy": FRACTION}
    kind = Kind("language_model", input_name, input_name, units, "loss", padding_id=padding_id)
    return StatedLoss(loss_fn, kind)


def _mean_of_example(values: jax.Array) -> jax.Array:
    return values.reshape(len(values), -1).mean(-1)


def _labels(batch: Batch) -> jax.Array:
    return batch["target"] if "target" in batch else batch["label"]
