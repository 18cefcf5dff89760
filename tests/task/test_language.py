"""Tasks about text: their losses and metrics against NumPy, and what they refuse."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp

from dl import optimizers, task
from dl.data import ArraySource, ArraySplits
from dl.errors import UserError
from dl.experiment import Experiment
from dl.losses import NOT_COUNTED
from dl.types import SEGMENT_IDS

V, T, S = 7, 5, 4
RANDOM = np.random.default_rng(0)
TABLE = RANDOM.normal(size=(V, V)).astype(np.float32)


class Table(nn.Module):
    """Puts out a row of a table for each token, so that the logits are known."""

    @nn.compact
    def __call__(self, tokens_BT, segment_ids_BT=None, train=False):
        return self.param("table", lambda key: jnp.asarray(TABLE))[tokens_BT]


class Translator(nn.Module):
    """The table of the decoder's tokens, plus the number of valid tokens of the source at one output."""

    @nn.compact
    def __call__(self, source_BS, source_mask_BS, target_BT, target_mask_BT, train=False):
        logits_BTV = Table(name="table")(target_BT)
        shift_BT = source_mask_BS.sum(-1)[:, None] * target_mask_BT
        return logits_BTV.at[..., 2].add(shift_BT)


def measured(learned, batch, key=None):
    """Returns the minimised loss and the metrics, of a batch whose last example is padding."""
    size = len(next(iter(batch.values())))
    batch = {name: jnp.asarray(values) for name, values in batch.items()}
    batch |= {"index": jnp.arange(size, dtype=jnp.int32) + 3, "mask": jnp.arange(size) < size - 1}
    variables = jax.jit(learned.init)(jax.random.key(0), batch)
    loss, aux = jax.jit(learned.loss)(variables["params"], {}, batch, key)
    return float(loss.compute()), {name: float(mean.compute()) for name, mean in aux.metrics.items()}


def expected(logits_BTV, targets_BT, smoothing=0.0):
    """The same by NumPy in float64, over the counted targets of all examples but the last."""
    log_p, targets = log_softmax(logits_BTV[:-1].astype(float), -1), targets_BT[:-1]
    counts = targets != NOT_COUNTED
    known = np.where(counts, targets, 0)
    plain = -np.take_along_axis(log_p, known[..., None], -1)[..., 0]
    smooth = (1 - smoothing) * plain - smoothing * log_p.mean(-1)
    is_right = log_p.argmax(-1) == known
    return {
        "minimised": smooth[counts].mean(),
        "loss": plain[counts].mean(),
        "accuracy": is_right[counts].mean(),
        "exact_match": (is_right | ~counts).all(-1)[counts.any(-1)].mean(),
    }


def check(learned, batch, found, key=None):
    minimised, metrics = measured(learned, batch, key)
    assert minimised == pytest.approx(found["minimised"], rel=1e-5)
    assert metrics == pytest.approx({name: found[name] for name in learned.kind.units}, rel=1e-5)
    assert metrics.keys() == learned.kind.units.keys()
    assert learned.kind.headline in metrics


TOKENS = RANDOM.integers(0, V, (6, T)).astype(np.int32)
LENGTHS = np.array([5, 3, 4, 1, 2, 5])
SEGMENTS = np.int32(np.arange(T) < LENGTHS[:, None])


def mask_tokens(key, example):
    is_masked_T = jax.random.bernoulli(key, 0.5, example["tokens"].shape) & (example[SEGMENT_IDS] > 0)
    return {
        **example,
        "tokens": jnp.where(is_masked_T, 0, example["tokens"]),
        "targets": jnp.where(is_masked_T, example["tokens"], NOT_COUNTED),
    }


def test_tagging_counts_tokens_with_a_class():
    label = np.where(SEGMENTS, RANDOM.integers(0, V, TOKENS.shape), NOT_COUNTED).astype(np.int32)
    batch = {"tokens": TOKENS, SEGMENT_IDS: SEGMENTS, "label": label}
    check(task.tagging(Table()), batch, expected(TABLE[TOKENS], label))
    with pytest.raises(UserError, match="no feature tag, which the task reads; they have .*tokens"):
        measured(task.tagging(Table(), target_name="tag"), batch)


def test_an_evaluation_masks_each_example_by_its_index_and_training_takes_the_masks_it_gets():
    batch = {"tokens": TOKENS, SEGMENT_IDS: SEGMENTS}
    rows = [
        mask_tokens(jax.random.fold_in(jax.random.key(0), i + 3), {name: x[i] for name, x in batch.items()})
        for i in range(len(TOKENS))
    ]
    masked = {name: np.stack([np.asarray(row[name]) for row in rows]) for name in rows[0]}
    learned, found = (
        task.masked_language_model(Table(), mask_tokens),
        expected(TABLE[masked["tokens"]], masked["targets"]),
    )
    check(learned, batch, found)
    # Data for a language model have other targets, which an evaluation does not take for masks.
    check(learned, {**batch, "targets": np.roll(TOKENS, -1, 1)}, found)
    one = {"tokens": TOKENS, SEGMENT_IDS: SEGMENTS, "targets": np.where(TOKENS > 2, TOKENS, NOT_COUNTED)}
    check(learned, one, expected(TABLE[TOKENS], one["targets"]), jax.random.key(1))


SOURCE = np.array([[3, 4, 2, 0], [5, 2, 0, 0], [6, 6, 6, 2], [2, 0, 0, 0], [0, 0, 0, 0]], np.int32)
TARGET = np.array([[5, 3, 2, 0], [4, 4, 4, 2], [2, 0, 0, 0], [6, 2, 0, 0], [0, 0, 0, 0]], np.uint8)


def logits_of(source, target):
    """The logits of `Translator`, which reads 1 and then the target."""
    read = np.concatenate([np.ones((len(target), 1), int), target[:, :-1].astype(int)], 1)
    is_valid = np.concatenate([np.ones((len(target), 1), bool), target[:, :-1] > 0], 1)
    logits = TABLE[read].copy()
    logits[..., 2] += (source > 0).sum(-1)[:, None] * is_valid
    return logits


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_sequence_to_sequence_reads_the_target_one_token_late(smoothing):
    learned = task.sequence_to_sequence(
        Translator(), start_id=1, end_id=2, padding_id=0, label_smoothing=smoothing
    )
    targets = np.where(TARGET == 0, NOT_COUNTED, TARGET.astype(int))
    check(
        learned,
        {"source": SOURCE, "target": TARGET},
        expected(logits_of(SOURCE, TARGET), targets, smoothing),
    )
    with pytest.raises(UserError, match="no feature source"):
        measured(learned, {"target": TARGET})


def test_denoising_makes_source_and_target_of_tokens():
    def cut(key, example):
        place = jax.random.randint(key, (), 1, T)
        is_source_T = jnp.arange(T) < place
        tokens_T = example["tokens"]
        kept = {name: values for name, values in example.items() if name != "tokens"}
        return {
            **kept,
            "source": jnp.where(is_source_T, tokens_T, 0),
            "target": jnp.where(is_source_T, 0, tokens_T)[::-1],
        }

    learned = task.sequence_to_sequence(Translator(), start_id=1, end_id=2, padding_id=0, corrupt=cut)
    tokens = np.maximum(TOKENS, 1)
    places = [
        int(jax.random.randint(jax.random.fold_in(jax.random.key(0), i + 3), (), 1, T)) for i in range(6)
    ]
    is_source = np.arange(T) < np.array(places)[:, None]
    source, target = np.where(is_source, tokens, 0), np.where(is_source, 0, tokens)[:, ::-1]
    found = expected(logits_of(source, target), np.where(target == 0, NOT_COUNTED, target))
    check(learned, {"tokens": tokens}, found)


def test_a_z_loss_is_minimised_and_not_reported():
    learned = task.language_model(Table(), padding_id=0, z_loss=0.01)
    targets = np.full(TOKENS.shape, NOT_COUNTED)
    targets[:, :-1] = np.where(TOKENS[:, 1:] == 0, NOT_COUNTED, TOKENS[:, 1:])
    found = expected(TABLE[TOKENS], targets)
    square = logsumexp(TABLE[TOKENS].astype(float), -1) ** 2
    found["minimised"] += 0.01 * square[:-1][targets[:-1] != NOT_COUNTED].mean()
    check(learned, {"tokens": TOKENS}, found)
    with pytest.raises(UserError, match="z_loss"):
        task.language_model(Table(), z_loss=-1.0)


class Pooled(nn.Module):
    @nn.compact
    def __call__(self, tokens_BT, segment_ids_BT=None, train=False):
        return (Table(name="table")(tokens_BT) * (segment_ids_BT > 0)[..., None]).sum(1)


def test_a_classifier_of_texts_reads_which_tokens_are_padding():
    label = np.arange(6) % V
    minimised, metrics = measured(
        task.classification(Pooled(), input_name="tokens"),
        {"tokens": TOKENS, SEGMENT_IDS: SEGMENTS, "label": label},
    )
    logits = (TABLE[TOKENS] * SEGMENTS[..., None]).sum(1)
    found = expected(logits[:, None], label[:, None])
    assert minimised == pytest.approx(found["loss"], rel=1e-5)
    assert metrics["accuracy"] == pytest.approx(found["accuracy"])


class Blind(nn.Module):
    @nn.compact
    def __call__(self, tokens_BT, train=False):
        return Table(name="table")(tokens_BT)


def test_a_model_that_cannot_read_the_padding_is_told_so():
    batch = {"tokens": TOKENS, SEGMENT_IDS: SEGMENTS, "label": TOKENS}
    with pytest.raises(UserError, match=r"Blind takes 1 array \(tokens_BT\), and the data have 2"):
        measured(task.tagging(Blind()), batch)
    measured(task.tagging(Blind()), {"tokens": TOKENS, "label": TOKENS})


def experiment_of(learned, arrays, **options):
    data = ArraySplits("tokens", train=ArraySource(arrays), evaluations={"test": ArraySource(arrays)})
    keywords = {"tx": optimizers.sgd(0.1), "num_steps": 1, "batch_size": 4, **options}
    return Experiment(data=data, task=learned, **keywords)


@pytest.mark.parametrize("shape", [(6, T), (6, 2, T)])
def test_tokens_of_a_classifier_are_never_decoded_as_pixels(shape):
    tokens = np.ones(shape, np.uint8)
    arrays = {"tokens": tokens, SEGMENT_IDS: tokens, "label": np.zeros(6, np.int32)}
    experiment = experiment_of(task.classification(Pooled(), input_name="tokens"), arrays)
    assert experiment.preprocess is not None
    read = experiment.preprocess({name: jnp.asarray(values) for name, values in arrays.items()})
    assert read["tokens"].dtype == jnp.uint8
    of_kind = experiment_of(task.tagging(Table()), arrays)
    assert of_kind.preprocess is None


def test_an_experiment_with_masks_must_mask_in_training_too():
    arrays = {"tokens": TOKENS, SEGMENT_IDS: SEGMENTS}
    learned = task.masked_language_model(Table(), mask_tokens)
    with pytest.raises(UserError, match="a masked language model learns from corrupted examples"):
        experiment_of(learned, arrays)
    experiment = experiment_of(learned, arrays, augment=mask_tokens)
    assert dataclasses.replace(experiment, seed=1).augment is mask_tokens
