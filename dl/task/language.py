"""Builders of tasks about text. Every loss is a mean over tokens, so long sequences have a larger weight.

Shapes: B examples, T tokens of a sequence, S tokens of an encoder's input, V tokens of the vocabulary,
C classes.
"""

import jax
import jax.numpy as jnp

from dl import losses
from dl.labels import watch
from dl.metrics import Mean
from dl.ranges import NON_NEGATIVE, PROBABILITY, check
from dl.task.builders import feature, reads, task_of
from dl.task.contract import FRACTION, Kind, Task
from dl.task.model import AnyModel, Inputs
from dl.types import SEGMENT_IDS, Augment, Batch, Metrics

_UNITS = {"loss": "nats a token", "accuracy": FRACTION}


def language_model(
    model: AnyModel, *, padding_id: int | None = None, z_loss: float = 0.0, input_name: str = "tokens"
) -> Task:
    """Returns the task to predict each token from the tokens before it, by cross-entropy in nats per token.

    The mean is over all predicted tokens of a batch, so long sequences have a larger weight than short ones.
    Metrics: `loss`, without `z_loss`, and `accuracy`, the fraction of tokens whose prediction is right.

    These features of the data are optional. `targets`, shape B × T: the token that follows each token, or
    `losses.NOT_COUNTED`; without it, the next token of the row. `segment_ids`, shape B × T: number of the
    sequence that each token belongs to, where several are packed into a row; 0 is padding. `positions`, shape
    B × T: position of each token. The model gets the last two as its second and third argument.

    Args:
      model: model that reads tokens, integers of shape B × T, and returns logits, shape B × T × V. The logits
        at t predict the token at t + 1. They must not depend on later tokens.
      padding_id: token that pads short sequences and is never counted. `None` means that every token counts.
      z_loss: z, at least 0. The minimised loss has the term z (log Σ exp logits)², which keeps the logits
        small. Source: Chowdhery et al. 2022, section 5, with z = 1e-4.
      input_name: name of the feature that holds the tokens. They are not preprocessed like pixels.

    Raises:
      UserError: `z_loss` is negative.
      ValueError: logits and tokens do not fit, when the loss is computed.
    """
    check("z_loss", z_loss, NON_NEGATIVE)

    def measure(logits_BTV: jax.Array, batch: Batch) -> tuple[Mean, Metrics]:
        vocab_size = logits_BTV.shape[-1]
        if padding_id is None or padding_id < vocab_size:
            watch(batch[input_name], vocab_size)
        loss, metrics, mask_BT = _token_metrics(
            logits_BTV, following_tokens(batch, input_name, padding_id), batch
        )
        if z_loss:
            square_BT = jnp.square(jax.nn.logsumexp(logits_BTV, -1))
            loss = _sum(loss, Mean.of(z_loss * square_BT, mask_BT))
        return loss, metrics

    kind = Kind("language_model", input_name, _UNITS, "loss", padding_id=padding_id)
    return task_of(model, measure, input_name, kind, reads(input_name, SEGMENT_IDS, "positions"))


def following_tokens(batch: Batch, input_name: str, padding_id: int | None) -> jax.Array:
    """Returns the targets of a language model, shape B × T; see `language_model`."""
    if "targets" in batch:
        return batch["targets"]
    return losses.next_tokens(batch[input_name], batch.get(SEGMENT_IDS), padding_id)


def masked_language_model(model: AnyModel, corrupt: Augment, *, input_name: str = "tokens") -> Task:
    """Returns the task to restore masked tokens from the tokens around them, in nats per masked token.

    Metrics: `loss` and `accuracy`, the fraction of masked tokens that are restored. Source: Devlin et al.
    2019, section 3.1.

    In training, `Experiment.augment` corrupts the examples; set it to `corrupt`. In evaluation this task
    corrupts each example by the key `fold_in(key(0), index)`, so an evaluation always has the same masks.
    `Task.predict` does not corrupt anything: it reads tokens with masks.

    Args:
      model: model that reads tokens, shape B × T, and `segment_ids` if the data have them (0 is padding), and
        returns logits, shape B × T × V.
      corrupt: function from a random key and one example to the example with masked tokens and the feature
        `targets`, shape T: the token that stood there, or `losses.NOT_COUNTED`; such as
        `data.text.mask_tokens`.
      input_name: name of the feature that holds the tokens.

    Raises:
      ValueError: logits and tokens do not fit, when the loss is computed.
    """

    def measure(logits_BTV: jax.Array, batch: Batch) -> tuple[Mean, Metrics]:
        return _token_metrics(logits_BTV, batch["targets"], batch)[:2]

    kind = Kind("masked_language_model", "targets", _UNITS, "loss", corrupt=corrupt)
    return task_of(model, measure, input_name, kind)


def sequence_to_sequence(
    model: AnyModel,
    *,
    start_id: int,
    end_id: int,
    padding_id: int,
    label_smoothing: float = 0.0,
    corrupt: Augment | None = None,
) -> Task:
    """Returns the task to write the target sequence of a source sequence, in nats per target token.

    Each token is predicted from the source and from the true tokens before it (teacher forcing). The features
    are `source`, shape B × S, and `target`, shape B × T: tokens that end with `end_id`, then padding.
    Metrics: `loss`, without label smoothing; `accuracy`, the fraction of target tokens whose prediction is
    right; `exact_match`, the fraction of sequences whose tokens are all right, given the true tokens before
    them. Source: Sutskever et al. 2014, section 2; Vaswani et al. 2017, section 5.4.

    Args:
      model: encoder-decoder that reads the source, which of its tokens are not padding (bool, B × S), the
        input of the decoder (the target after `start_id`, B × T), and which of it is not padding. It returns
        logits, shape B × T × V. The logits at t must not depend on later tokens of the target.
      start_id: token that the decoder reads first.
      end_id: last token of every target.
      padding_id: token after the end of a sequence, which is never counted.
      label_smoothing: share of each target that is spread evenly over the vocabulary, in [0, 1]; see
        `losses.cross_entropy`.
      corrupt: for denoising, function from a random key and one example to an example with the features
        `source` and `target`, such as `data.text.corrupt_spans`. It corrupts the examples in evaluation; set
        `Experiment.augment` to it, as for `masked_language_model`.

    Raises:
      UserError: `label_smoothing` is out of range, or a feature is missing.
      ValueError: logits and tokens do not fit, when the loss is computed.
    """
    check("label_smoothing", label_smoothing, PROBABILITY)

    def inputs_of(batch: Batch) -> Inputs:
        source_BS, target_BT = (feature(batch, name) for name in ("source", "target"))
        # A decoder reads at least one token, also in a row of padding.
        is_valid_BT = shift_right(target_BT != padding_id, True)
        return source_BS, source_BS != padding_id, shift_right(target_BT, start_id), is_valid_BT

    def measure(logits_BTV: jax.Array, batch: Batch) -> tuple[Mean, Metrics]:
        watch(batch["target"], logits_BTV.shape[-1])
        targets_BT = sequence_targets(batch, padding_id)
        loss, metrics, mask_BT = _token_metrics(logits_BTV, targets_BT, batch)
        if label_smoothing:
            uniform = Mean.of(label_smoothing * losses.uniform_cross_entropy(logits_BTV), mask_BT)
            loss = _sum(loss.times(1 - label_smoothing), uniform)
        is_right_B = ((logits_BTV.argmax(-1) == targets_BT) | ~mask_BT).all(-1)
        return loss, metrics | {"exact_match": Mean.of(is_right_B, mask_BT.any(-1), better="max")}

    kind = Kind(
        "sequence_to_sequence",
        "target",
        _UNITS | {"exact_match": FRACTION},
        "loss",
        padding_id=padding_id,
        start_id=start_id,
        end_id=end_id,
        corrupt=corrupt,
    )
    return task_of(model, measure, "source", kind, inputs_of)


def sequence_targets(batch: Batch, padding_id: int | None) -> jax.Array:
    """Returns the targets of `sequence_to_sequence`, shape B × T, with `losses.NOT_COUNTED` at padding."""
    target_BT = jnp.asarray(batch["target"], jnp.int32)
    return jnp.where(target_BT == padding_id, losses.NOT_COUNTED, target_BT)


def counted_targets(task: Task, batch: Batch) -> jax.Array:
    """Returns which targets of a batch the loss of a task counts, bool: shape B × T for tokens, else B."""
    mask_B, kind = batch["mask"], task.kind
    if kind is None or not kind.reads_tokens:
        return mask_B
    if kind.name == "language_model":
        targets_BT = following_tokens(batch, task.input_name, kind.padding_id)
    elif kind.name == "sequence_to_sequence":
        targets_BT = sequence_targets(batch, kind.padding_id)
    else:
        targets_BT = jnp.asarray(feature(batch, kind.target), jnp.int32)
    return (targets_BT != losses.NOT_COUNTED) & mask_B[:, None]


def shift_right(values_BT: jax.Array, first: int | bool) -> jax.Array:
    """Returns `first` and all values but the last of each row."""
    return jnp.pad(values_BT[:, :-1], ((0, 0), (1, 0)), constant_values=first)


def tagging(model: AnyModel, *, input_name: str = "tokens", target_name: str = "label") -> Task:
    """Returns the task to classify every token of a sequence, by cross-entropy in nats per token.

    Metrics: `loss` and `accuracy`, the fraction of tokens whose class is right.

    Args:
      model: model that reads tokens, shape B × T, and `segment_ids` if the data have them (0 is padding), and
        returns logits, shape B × T × C.
      input_name: name of the feature that holds the tokens.
      target_name: name of the feature that holds the class of each token, integers of shape B × T;
        `losses.NOT_COUNTED` at a token that does not count, such as padding.

    Raises:
      UserError: the data do not have the labels.
      ValueError: logits and labels do not fit, when the loss is computed.
    """

    def measure(logits_BTC: jax.Array, batch: Batch) -> tuple[Mean, Metrics]:
        return _token_metrics(logits_BTC, jnp.asarray(feature(batch, target_name), jnp.int32), batch)[:2]

    return task_of(model, measure, input_name, Kind("tagging", target_name, _UNITS, "accuracy"))


def _token_metrics(
    logits_BTV: jax.Array, targets_BT: jax.Array, batch: Batch
) -> tuple[Mean, Metrics, jax.Array]:
    """Returns the loss, the metrics `loss` and `accuracy`, and which targets count, shape B × T."""
    loss_BT, is_right_BT, counts_BT = losses.of_tokens(logits_BTV, targets_BT)
    mask_BT = counts_BT & batch["mask"][:, None]
    loss = Mean.of(loss_BT, mask_BT, better="min")
    return loss, {"loss": loss, "accuracy": Mean.of(is_right_BT, mask_BT, better="max")}, mask_BT


def _sum(mean: Mean, term: Mean) -> Mean:
    """Returns the mean of the sum of two values of the same tokens."""
    return Mean(mean.total + term.total, mean.count, None, mean.better)
