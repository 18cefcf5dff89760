"""Loss functions, and the builders that turn a model into a `LossFn`.

Shapes: B examples, C classes, D outputs.
"""

import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from dl.metrics import Mean, accuracy
from dl.ranges import PROBABILITY, check
from dl.types import Aux, Batch, Key, LossFn, Metrics, ModelState, Params


def cross_entropy(logits_BC: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Returns -log softmax(logits)[label] per example, in nats, shape B.

    From logits, by log-sum-exp: exact at any magnitude.

    Args:
      logits_BC: unnormalised log-probabilities.
      labels: the classes, shape B, or distributions over them, shape B × C: -Σ target log softmax(logits).
      label_smoothing: e; the target is (1 - e) on the label plus e / C everywhere (Szegedy et al. 2016, §7).
    """
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
        loss = Mean.of(loss_B, batch["mask"])
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

    A batch with soft labels, `target` of shape B × C (`regularizers.mixup` makes them), is measured by those
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
            "loss": Mean.of(cross_entropy(logits_BC, labels), batch["mask"]),
            "accuracy": accuracy(logits_BC, labels, batch["mask"]),
        }

    return supervised(model, example_loss, example_metrics, input_name)


def regression(
    model: nn.Module,
    example_loss: Callable[[jax.Array, jax.Array], jax.Array] = mean_squared_error,
    *,
    input_name: str = "image",
) -> LossFn:
    """Returns the mean of a per-example loss of outputs against the feature `target`, with the metric `loss`.

    Targets have the shape of the model's output, B × D; where D is 1, shape B will do.

    Args:
      model: called as in `supervised`.
      example_loss: from outputs and targets to one loss per example, shape B.
      input_name: the feature that the model reads.
    """

    def loss_of_batch(output_BD: jax.Array, batch: Batch) -> jax.Array:
        target_BD = batch["target"]
        if target_BD.ndim == 1 and output_BD.shape[1:] == (1,):
            target_BD = target_BD[:, None]
        return example_loss(output_BD, target_BD)

    return supervised(model, loss_of_batch, input_name=input_name)


def _labels(batch: Batch) -> jax.Array:
    return batch["target"] if "target" in batch else batch["label"]
