"""Loss functions: pure functions from outputs and targets to one number per example.

`dl.task` makes tasks from them.

Shapes: B examples, C classes or labels, D outputs, T tokens of a sequence, V tokens of the vocabulary,
S = T - 1 tokens that are predicted. … stands for any number of axes.
"""

import jax
import jax.numpy as jnp
import optax

from dl.errors import UserError
from dl.labels import class_labels


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


def uniform_cross_entropy(logits_BC: jax.Array) -> jax.Array:
    """Returns the cross-entropy of the uniform target, -Σ log softmax(logits) / C, in nats, shape B."""
    return jax.nn.logsumexp(logits_BC, -1) - logits_BC.mean(-1)


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


NOT_COUNTED = -1
"""The target of a token that does not count, such as padding."""


def of_tokens(logits_BTV: jax.Array, targets_BT: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns three arrays about the prediction of every target, each of shape B × T.

    They are the cross-entropy in nats, whether the prediction is right, and whether the target counts.

    Args:
      logits_BTV: the model's outputs.
      targets_BT: integers in [0, V), or `NOT_COUNTED`.

    Raises:
      UserError: the shapes do not fit.
    """
    if logits_BTV.ndim != 3 or logits_BTV.shape[:2] != targets_BT.shape:
        raise UserError(
            f"a language model's logits have shape (batch, tokens, vocabulary), got {logits_BTV.shape} for "
            f"targets of shape {targets_BT.shape}"
        )
    counts_BT = targets_BT != NOT_COUNTED
    known_BT = jnp.where(counts_BT, targets_BT, 0)
    return cross_entropy(logits_BTV, known_BT), logits_BTV.argmax(-1) == known_BT, counts_BT


def next_tokens(
    tokens_BT: jax.Array, segment_ids_BT: jax.Array | None = None, padding_id: int | None = None
) -> jax.Array:
    """Returns the target at each token: the token that follows it, int32, shape B × T.

    It is `NOT_COUNTED` at the last token, where padding follows, and where another segment follows.

    Args:
      tokens_BT: integers.
      segment_ids_BT: number of the segment that each token belongs to; 0 is padding.
      padding_id: token that is padding.

    Raises:
      UserError: the tokens have another shape, or there are fewer than two in a row.
    """
    if tokens_BT.ndim != 2 or tokens_BT.shape[1] < 2:
        raise UserError(
            f"the tokens of a language model have shape {tokens_BT.shape}; expected (batch, tokens), with at "
            "least two tokens in a row"
        )
    targets_BT = jnp.pad(
        jnp.asarray(tokens_BT[:, 1:], jnp.int32), ((0, 0), (0, 1)), constant_values=NOT_COUNTED
    )
    if padding_id is not None:
        targets_BT = jnp.where(targets_BT == padding_id, NOT_COUNTED, targets_BT)
    if segment_ids_BT is not None:
        following_BT = jnp.pad(segment_ids_BT[:, 1:], ((0, 0), (0, 1)))
        counts_BT = (segment_ids_BT == following_BT) & (segment_ids_BT > 0)
        targets_BT = jnp.where(counts_BT, targets_BT, NOT_COUNTED)
    return targets_BT


def _check_same_shape(output: jax.Array, target: jax.Array) -> None:
    if output.shape != target.shape:  # (B, 1) and (B,) would broadcast to all pairs of examples
        raise UserError(
            f"the model's outputs of shape {output.shape} and targets of shape {target.shape} differ; the "
            "first axis counts the examples, and the others must be the same"
        )


def _mean_of_example(values: jax.Array) -> jax.Array:
    return values.reshape(len(values), -1).mean(-1)
