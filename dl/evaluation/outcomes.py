"""The outcome of each example of a classifier: a few numbers from which its metrics follow.

They take the same memory for every number of classes, where the probabilities of all classes do not.

Shapes: B examples, C classes.
"""

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Outcomes:
    """The outcomes of B examples, each of shape B.

    Attributes:
      label: the class of the example, int32.
      predicted: the first class with the largest probability, int32.
      rank: the number of classes that rank above the label, int32. Among equal probabilities the later class
        is ranked higher; with two classes the earlier one is.
      label_log_probability: the natural logarithm of the probability of the label, float32.
      predicted_log_probability: that of the prediction.
      runner_up_log_probability: that of the best class but the prediction.
      brier: Σ_c (p_c - [c is the label])², in [0, 2] (Brier 1950, eq. 2), float32. It is NaN exactly if a
        log-probability of the example is NaN.
    """

    label: jax.Array
    predicted: jax.Array
    rank: jax.Array
    label_log_probability: jax.Array
    predicted_log_probability: jax.Array
    runner_up_log_probability: jax.Array
    brier: jax.Array

    @classmethod
    def of(cls, log_probabilities_BC: jax.Array, labels_B: jax.Array) -> "Outcomes":
        """Returns the outcomes. Those of a label outside of [0, C) have no meaning."""
        log_p_BC = jnp.asarray(log_probabilities_BC, jnp.float32)
        labels_B = jnp.asarray(labels_B, jnp.int32)
        class_1C = jnp.arange(log_p_BC.shape[-1])[None, :]
        predicted_B = log_p_BC.argmax(-1).astype(jnp.int32)
        label_log_p_B1 = jnp.take_along_axis(log_p_BC, labels_B[:, None], axis=-1)
        # expm1 computes 1 - p accurately; exp would round a confident p to 1.
        is_label_BC = class_1C == labels_B[:, None]
        distance_BC = jnp.where(is_label_BC, jnp.expm1(log_p_BC), jnp.exp(log_p_BC))
        others_BC = jnp.where(class_1C == predicted_B[:, None], -jnp.inf, log_p_BC)
        return cls(
            labels_B,
            predicted_B,
            _rank_of_label(log_p_BC, label_log_p_B1, labels_B[:, None]),
            label_log_p_B1[:, 0],
            log_p_BC.max(-1),
            others_BC.max(-1),
            (distance_BC**2).sum(-1),
        )

    @property
    def is_right(self) -> jax.Array:
        """Whether the prediction is the label, bool, shape B."""
        return self.predicted == self.label


def _rank_of_label(scores_BC: jax.Array, label_score_B1: jax.Array, labels_B1: jax.Array) -> jax.Array:
    """Returns how many classes rank above the label. A NaN does, and every class ranks above a NaN label."""
    num_classes = scores_BC.shape[-1]
    class_1C = jnp.arange(num_classes)[None, :]
    wins_tie_BC = class_1C > labels_B1 if num_classes > 2 else class_1C < labels_B1
    is_behind_BC = (scores_BC < label_score_B1) | ((scores_BC == label_score_B1) & ~wins_tie_BC)
    return (~is_behind_BC & (class_1C != labels_B1)).sum(-1, dtype=jnp.int32)
