"""Loss functions: pure functions from outputs and targets to one number per example.

`dl.task` makes tasks from them.

Shapes: B examples, C classes or labels, D outputs, T tokens of a sequence, V tokens of the vocabulary,
S = T - 1 tokens that are predicted. … stands for any number of axes.
"""

import jax
import jax.numpy as jnp
import optax

from dl.errors import UserError
from dl.labels import class_labels, watch


def cross_entropy(logits_BC: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Returns -log softmax(logits)[label] per example, in nats, shape B.

    It is computed by log-sum-exp, so it does not overflow for logits of any magnitude.

    Args:
      logits_BC: unnormalised log-probabilities.
      labels: classes, shape B or B × 1, or distributions over the classes, shape B × C. For a distribution
        the loss is -Σ target log softmax(logits).
      label_smoothing: e, in [0, 1]. The target is (1 - e) on the label plus e / C on every class.
        Source: Szegedy et al. 2016, section 7.

    Raises:
      UserError: the labels do not fit the logits.
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

    The cross-entropy of one output is -y log p - (1 - y) log(1 - p), where p is its sigmoid.
    """
    return optax.sigmoid_binary_cross_entropy(logits_BC, targets_BC).sum(-1)


def mean_binary_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the cross-entropy of independent sigmoids, averaged over each example, in nats, shape B.

    Args:
      logits: logits, shape B × ….
      targets: targets in [0, 1], of the same shape.

    Raises:
      UserError: the shapes differ.
    """
    _check_same_shape(logits, targets)
    return _mean_of_example(optax.sigmoid_binary_cross_entropy(logits, targets))


def half_squared_error(output_BD: jax.Array, target_BD: jax.Array) -> jax.Array:
    """Returns ½ Σ (output - target)² over D per example, shape B; its gradient is output - target.

    Raises:
      UserError: the shapes differ.
    """
    _check_same_shape(output_BD, target_BD)
    return jnp.square(output_BD - target_BD).sum(-1) / 2


def mean_squared_error(output: jax.Array, target: jax.Array) -> jax.Array:
    """Returns the mean of (output - target)² over the values of an example, shape B.

    Both are of shape B × ….

    Raises:
      UserError: the shapes differ.
    """
    _check_same_shape(output, target)
    return _mean_of_example(jnp.square(output - target))


def mean_absolute_error(output: jax.Array, target: jax.Array) -> jax.Array:
    """Returns the mean of |output - target| over the values of an example, shape B.

    Both are of shape B × ….

    Raises:
      UserError: the shapes differ.
    """
    _check_same_shape(output, target)
    return _mean_of_example(jnp.abs(output - target))


def next_token(
    logits_BTV: jax.Array, tokens_BT: jax.Array, padding_id: int | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns three arrays about the prediction of every token but the first, each of shape B × (T - 1).

    They are the cross-entropy in nats, whether the prediction is right, and whether the token counts. The
    logits at t predict the token at t + 1. They must not depend on later tokens.

    Args:
      logits_BTV: the model's output for the whole sequences.
      tokens_BT: integers in [0, V).
      padding_id: the token that does not count.

    Raises:
      UserError: the shapes do not fit.
    """
    if logits_BTV.ndim != 3 or logits_BTV.shape[:2] != tokens_BT.shape or tokens_BT.shape[1] < 2:
        raise UserError(
            f"a language model's logits have shape (batch, tokens, vocabulary), got {logits_BTV.shape} for "
            f"tokens of shape {tokens_BT.shape}; there must be at least two tokens"
        )
    if padding_id is None or padding_id < logits_BTV.shape[-1]:
        watch(tokens_BT, logits_BTV.shape[-1])
    next_BS = jnp.asarray(tokens_BT[:, 1:], jnp.int32)
    logits_BSV = logits_BTV[:, :-1]
    counts_BS = jnp.ones(next_BS.shape, bool) if padding_id is None else next_BS != padding_id
    return cross_entropy(logits_BSV, next_BS), logits_BSV.argmax(-1) == next_BS, counts_BS


def _check_same_shape(output: jax.Array, target: jax.Array) -> None:
    if output.shape != target.shape:  # (B, 1) and (B,) would broadcast to all pairs of examples
        raise UserError(
            f"the model's outputs of shape {output.shape} and targets of shape {target.shape} differ; the "
            "first axis counts the examples, and the others must be the same"
        )


def _mean_of_example(values: jax.Array) -> jax.Array:
    return values.reshape(len(values), -1).mean(-1)
