"""Collects the predictions of tasks about text.

Shapes: B examples of a batch, S tokens that the model reads, T targets, V tokens in the vocabulary, or
classes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dl.losses import NOT_COUNTED, of_tokens
from dl.runs.predictions.collect import class_names
from dl.runs.predictions.collection import Collection
from dl.runs.predictions.kept import Kept
from dl.runs.predictions.kept_tokens import LanguageModel, MaskedLanguageModel, SequenceToSequence, Tagging
from dl.task import following_tokens, sequence_targets
from dl.types import SEGMENT_IDS, Batch

OfBatch = Callable[[Batch], jax.Array]


def collect_language_model(collection: Collection) -> Kept | None:
    """Returns the predictions of a language model."""
    kind, input_name = collection.kind, collection.experiment.task.input_name

    def targets(batch: Batch) -> jax.Array:
        return following_tokens(batch, input_name, kind.padding_id)

    def in_full(logits_BTV: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        targets_BT = targets(batch)
        token_loss_BT = _token_loss(logits_BTV, targets_BT)
        tokens_BT = jnp.asarray(batch[input_name], jnp.int32)
        if "targets" not in batch:
            return {"token": tokens_BT, "token_loss": token_loss_BT[:, :-1]}
        # The tokens of the row, and the last target, which is not a token of the row.
        last_B1 = jnp.where(targets_BT == NOT_COUNTED, 0, targets_BT)[:, -1:]
        return {"token": jnp.concatenate([tokens_BT, last_B1], 1), "token_loss": token_loss_BT}

    found = _collect(collection, targets, in_full)
    return None if found is None else LanguageModel(**found)


def collect_masked_language_model(collection: Collection) -> Kept | None:
    """Returns the predictions of a masked language model, with the masks of its evaluation."""
    found = _collect(collection, _feature("targets"), _with_guesses(_read(collection), _feature("targets")))
    return None if found is None else MaskedLanguageModel(**found)


def collect_sequence_to_sequence(collection: Collection) -> Kept | None:
    """Returns the predictions of a sequence-to-sequence task, each from the true tokens before it."""
    padding_id = collection.kind.padding_id

    def source(batch: Batch) -> jax.Array:
        source_BS = jnp.asarray(batch["source"], jnp.int32)
        return jnp.where(source_BS == padding_id, NOT_COUNTED, source_BS)

    def targets(batch: Batch) -> jax.Array:
        return sequence_targets(batch, padding_id)

    found = _collect(collection, targets, _with_guesses(source, targets))
    return None if found is None else SequenceToSequence(**found)


def collect_tagging(collection: Collection) -> Kept | None:
    """Returns the predicted classes of tokens."""
    num_classes = 0
    targets = _feature(collection.kind.target)
    of_batch = _with_guesses(_read(collection), targets)

    def in_full(logits_BTC: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        nonlocal num_classes
        num_classes = logits_BTC.shape[-1]
        return of_batch(logits_BTC, batch)

    found = _collect(collection, targets, in_full, ("token",))
    if found is None:
        return None
    return Tagging(**found, class_names=class_names(collection.experiment.data, num_classes))


def _collect(
    collection: Collection,
    targets: OfBatch,
    in_full: Callable[[jax.Array, Batch], dict[str, jax.Array]],
    of_vocabulary: Sequence[str] = ("token", "target", "guess"),
) -> dict[str, Any] | None:
    """Returns the fields that all kinds have, and `in_full` of a few sequences.

    Args:
      collection: the split.
      targets: function from a batch to its targets, shape B × T.
      in_full: function from outputs and a batch to what is kept of a few sequences.
      of_vocabulary: the arrays of `in_full` that hold tokens. Their names are dropped if one has no name.
    """

    def sums(logits_BTV: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        loss_BT, is_right_BT, counts_BT = of_tokens(jnp.asarray(logits_BTV, jnp.float32), targets(batch))
        return {
            "loss": jnp.where(counts_BT, loss_BT, 0.0).sum(-1),
            "num_right": (is_right_BT & counts_BT).sum(-1, dtype=jnp.int32),
            "num_tokens": counts_BT.sum(-1, dtype=jnp.int32),
        }

    if (collected := collection.collect(sums)) is None:
        return None
    common, found = collected
    per_token = found["loss"] / np.maximum(found["num_tokens"], 1)
    shown, kept = collection.collect_in_full(in_full, common["index"], per_token)
    names = tuple(map(str, getattr(collection.experiment.data, "token_names", ())))
    largest = int(max(kept[name].max(initial=0) for name in of_vocabulary if name in kept))
    if names and collection.kind.corrupt is not None:  # sentinels may lie after the vocabulary
        names += tuple(f"<{token}>" for token in range(len(names), largest + 1))
    if largest >= len(names):
        names = ()
    return {**common, **found, **shown, **kept, "token_names": names}


def _with_guesses(tokens: OfBatch, targets: OfBatch) -> Callable[[jax.Array, Batch], dict[str, jax.Array]]:
    def in_full(logits_BTV: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        targets_BT = jnp.asarray(targets(batch), jnp.int32)
        return {
            "token": tokens(batch),
            "target": targets_BT,
            "guess": logits_BTV.argmax(-1).astype(jnp.int32),
            "token_loss": _token_loss(logits_BTV, targets_BT),
        }

    return in_full


def _token_loss(logits_BTV: jax.Array, targets_BT: jax.Array) -> jax.Array:
    loss_BT, _, counts_BT = of_tokens(jnp.asarray(logits_BTV, jnp.float32), targets_BT)
    return jnp.where(counts_BT, loss_BT, jnp.nan)


def _feature(name: str) -> OfBatch:
    return lambda batch: jnp.asarray(batch[name], jnp.int32)


def _read(collection: Collection) -> OfBatch:
    """Returns the function from a batch to the tokens that the model reads, without padding."""
    name = collection.experiment.task.input_name

    def tokens(batch: Batch) -> jax.Array:
        tokens_BT = jnp.asarray(batch[name], jnp.int32)
        if SEGMENT_IDS not in batch:
            return tokens_BT
        return jnp.where(batch[SEGMENT_IDS] > 0, tokens_BT, NOT_COUNTED)

    return tokens
