"""Builders of tasks about text.

Shapes: B examples, T tokens of a sequence, V tokens of the vocabulary.
"""

import jax

from dl import losses
from dl.labels import watch
from dl.metrics import Mean
from dl.task.builders import task_of
from dl.task.contract import FRACTION, Kind, Task
from dl.task.model import AnyModel
from dl.types import Batch, Metrics


def language_model(model: AnyModel, *, padding_id: int | None = None, input_name: str = "tokens") -> Task:
    """Returns the task to predict each token from the tokens before it, by cross-entropy in nats per token.

    The mean is over all predicted tokens of a batch, so long sequences have a larger weight than short ones.
    Metrics: `loss` and `accuracy`, the fraction of tokens whose prediction is right.

    These features of the data are optional. `targets`, shape B × T: the token that follows each token, or
    `losses.NOT_COUNTED`; without it, the next token of the row. `segment_ids`, shape B × T: number of the
    sequence that each token belongs to, where several are packed into a row; 0 is padding. `positions`, shape
    B × T: position of each token. The model gets the last two as its second and third argument.

    Args:
      model: model that reads tokens, integers of shape B × T, and returns logits, shape B × T × V. The logits
        at t predict the token at t + 1. They must not depend on later tokens.
      padding_id: token that pads short sequences and is never counted. `None` means that every token counts.
      input_name: name of the feature that holds the tokens. They are not preprocessed like pixels.

    Raises:
      ValueError: logits and tokens do not fit, when the loss is computed.
    """

    def measure(logits_BTV: jax.Array, batch: Batch) -> tuple[Mean, Metrics]:
        vocab_size = logits_BTV.shape[-1]
        if padding_id is None or padding_id < vocab_size:
            watch(batch[input_name], vocab_size)
        return _token_metrics(logits_BTV, following_tokens(batch, input_name, padding_id), batch)

    units = {"loss": "nats a token", "accuracy": FRACTION}
    kind = Kind("language_model", input_name, units, "loss", padding_id=padding_id)
    return task_of(model, measure, input_name, kind, ("segment_ids", "positions"))


def following_tokens(batch: Batch, input_name: str, padding_id: int | None) -> jax.Array:
    """Returns the targets of a language model, shape B × T; see `language_model`."""
    if "targets" in batch:
        return batch["targets"]
    return losses.next_tokens(batch[input_name], batch.get("segment_ids"), padding_id)


def _token_metrics(logits_BTV: jax.Array, targets_BT: jax.Array, batch: Batch) -> tuple[Mean, Metrics]:
    """Returns the loss and the metrics `loss` and `accuracy` over the targets that count."""
    loss_BT, is_right_BT, counts_BT = losses.of_tokens(logits_BTV, targets_BT)
    mask_BT = counts_BT & batch["mask"][:, None]
    loss = Mean.of(loss_BT, mask_BT, better="min")
    return loss, {"loss": loss, "accuracy": Mean.of(is_right_BT, mask_BT, better="max")}
