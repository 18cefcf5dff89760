"""Metrics of a classifier: counts on the device, and metrics that are computed from the counts.

Counts are int32, so they are bitwise equal on any number of devices (up to 2^31 - 1 examples).

The metrics equal those of scikit-learn with `labels=range(C)` and `zero_division=0`: a class that never
occurs and is never predicted has precision, recall and F1 of 0, and has the same weight in the macro mean as
any other class. Without a valid example every metric is 0, except that the perplexity is 1.

Shapes: B examples, C classes; rows of the confusion matrix are labels, columns predictions.
"""

from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from dl.evaluation.outcomes import Outcomes
from dl.evaluation.sums import ExactMean


@flax.struct.dataclass
class Classification:
    """Sums over examples that add up over batches and devices.

    Attributes:
      confusion: how often label i was predicted as j, int32, shape C × C. The prediction is the first class
        with the largest score.
      rank_counts: how often the label was the class with the k-th largest score, from k = 0, int32, shape C.
      log_loss: -log p(label), in nats. It is not clipped: a label of probability 0 makes it infinite
        (scikit-learn clips at the machine epsilon of the dtype).
      brier: Σ_c (p_c - [c is the label])², in [0, 2] for every C (Brier 1950, eq. 2). It equals that of
        scikit-learn with `scale_by_half=False`; scikit-learn halves it by default for two classes.
    """

    confusion: jax.Array
    rank_counts: jax.Array
    log_loss: ExactMean
    brier: ExactMean

    @classmethod
    def of(
        cls, log_probabilities_BC: jax.Array, labels_B: jax.Array, mask_B: jax.Array | None = None
    ) -> "Classification":
        """Returns the sums over the valid examples: mask True (or no mask) and label in [0, C).

        A NaN in the log-probabilities of an example makes the log-loss and the Brier score NaN, and gives its
        label the last rank.
        """
        num_classes = jnp.shape(log_probabilities_BC)[-1]
        valid_B = valid_examples(labels_B, mask_B, num_classes)
        outcomes = Outcomes.of(log_probabilities_BC, labels_B)
        counts_B = valid_B.astype(jnp.int32)
        return cls(
            jnp.zeros((num_classes, num_classes), jnp.int32)
            .at[outcomes.label, outcomes.predicted]
            .add(counts_B),
            jnp.zeros(num_classes, jnp.int32).at[outcomes.rank].add(counts_B),
            ExactMean.of(-outcomes.label_log_probability, valid_B),
            ExactMean.of(outcomes.brier, valid_B),
        )

    def merge(self, other: "Classification") -> "Classification":
        return Classification(
            self.confusion + other.confusion,
            self.rank_counts + other.rank_counts,
            self.log_loss.merge(other.log_loss),
            self.brier.merge(other.brier),
        )


class Counts(NamedTuple):
    """What the scores of C classes follow from, each int32, shape C.

    Attributes:
      hits: how often each class was the label and the prediction.
      predicted: how often it was the prediction.
      labelled: how often it was the label.
    """

    hits: jax.Array
    predicted: jax.Array
    labelled: jax.Array

    @classmethod
    def of(cls, confusion_CC: jax.Array) -> "Counts":
        """Returns the counts of a confusion matrix."""
        return cls(jnp.diag(confusion_CC), confusion_CC.sum(0), confusion_CC.sum(1))


class Scores(NamedTuple):
    """Precision tp / (tp + fp), recall tp / (tp + fn) and their harmonic mean; 0 if the divisor is 0."""

    precision: jax.Array
    recall: jax.Array
    f1: jax.Array


def valid_examples(labels_B: jax.Array, mask_B: jax.Array | None, num_classes: int) -> jax.Array:
    """Returns which examples are valid: mask True (or no mask) and label in [0, num_classes)."""
    labels_B = jnp.asarray(labels_B, jnp.int32)
    valid_B = (labels_B >= 0) & (labels_B < num_classes)
    return valid_B if mask_B is None else valid_B & jnp.asarray(mask_B, bool)


def accuracy(counts: Counts) -> jax.Array:
    """Returns the fraction of examples whose prediction is the label; 0 without examples."""
    return _ratio(counts.hits.sum(), counts.labelled.sum())


def top_k_accuracy(rank_counts_C: jax.Array, k: int) -> jax.Array:
    """Returns the fraction of examples whose label is among the k largest scores; 0 without examples.

    Among equal scores the later class is ranked higher; with two classes the earlier one is. This equals
    `sklearn.metrics.top_k_accuracy_score`, so k = 1 may differ from `accuracy` if scores are equal.
    """
    return _ratio(rank_counts_C[:k].sum(), rank_counts_C.sum())


def per_class(counts: Counts) -> Scores:
    """Returns the scores of each class against all others, shape C."""
    return _scores(counts.hits, counts.predicted, counts.labelled)


def macro(counts: Counts) -> Scores:
    """Returns the unweighted means of the scores over all classes."""
    return Scores(*(score_C.mean() for score_C in per_class(counts)))


def micro(counts: Counts) -> Scores:
    """Returns the scores of the summed counts; with one label per example all three are the accuracy."""
    return _scores(counts.hits.sum(), counts.predicted.sum(), counts.labelled.sum())


def weighted(counts: Counts) -> Scores:
    """Returns the means of the scores, weighted by the number of examples of each class."""
    weights_C = _ratio(counts.labelled, counts.labelled.sum())
    return Scores(*((score_C * weights_C).sum() for score_C in per_class(counts)))


def perplexity(log_loss: jax.Array) -> jax.Array:
    """Returns exp(mean negative log-likelihood in nats): the number of equally likely classes."""
    return jnp.exp(log_loss)


def _scores(hits: jax.Array, predicted: jax.Array, labelled: jax.Array) -> Scores:
    return Scores(
        _ratio(hits, predicted),
        _ratio(hits, labelled),
        # 2 tp / (2 tp + fp + fn), halved because doubled counts might overflow.
        jnp.where(hits > 0, hits / jnp.maximum(predicted / 2 + labelled / 2, 1), 0.0),
    )


def _ratio(count: jax.Array, total: jax.Array) -> jax.Array:
    return count / jnp.maximum(total, 1)
