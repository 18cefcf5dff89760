"""Tasks about text: loss and gradient do not depend on micro-batches and devices, nor do the masks."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dl import optimizers, task
from dl.data import ArraySource, ArraySplits
from dl.experiment import Experiment
from dl.gradients import accumulated_gradient, mean_gradient
from dl.losses import NOT_COUNTED
from dl.metrics import Mean
from dl.training.step import StepConfig, update_state, with_inputs
from dl.types import SEGMENT_IDS, Aux

V, T, SIZE = 7, 6, 16
LENGTHS = np.array([6, 1, 2, 5, 1, 3, 6, 2, 4, 1, 1, 6, 3, 2, 5, 1])  # sequences of unequal length
IS_TOKEN = np.arange(T) < LENGTHS[:, None]
TOKENS = np.where(IS_TOKEN, np.random.default_rng(0).integers(2, V, (SIZE, T)), 0).astype(np.int32)


class Reader(nn.Module):
    num_outputs: int = V

    @nn.compact
    def __call__(self, tokens_BT, segment_ids_BT=None, positions_BT=None, train=False):
        x_BTD = nn.Embed(V, 5)(tokens_BT)
        return nn.Dense(self.num_outputs)(jnp.tanh(x_BTD + jnp.cumsum(x_BTD, 1)))


class Classifier(nn.Module):
    @nn.compact
    def __call__(self, tokens_BT, segment_ids_BT=None, train=False):
        return (Reader()(tokens_BT) * (segment_ids_BT > 0)[..., None]).sum(1)


class Translator(nn.Module):
    @nn.compact
    def __call__(self, source_BS, source_mask_BS, target_BT, target_mask_BT, train=False):
        embed = nn.Embed(V, 5)
        memory_B1D = (embed(source_BS) * source_mask_BS[..., None]).sum(1, keepdims=True)
        return nn.Dense(V)(jnp.tanh(embed(target_BT) + memory_B1D))


def mask_tokens(key, example):
    is_masked_T = jax.random.bernoulli(key, 0.4, (T,)) & (example[SEGMENT_IDS] > 0)
    tokens_T = example["tokens"]
    return {
        **example,
        "tokens": jnp.where(is_masked_T, 1, tokens_T),
        "targets": jnp.where(is_masked_T, tokens_T, NOT_COUNTED),
    }


def cut(key, example):
    """Denoising: the tokens before a random place are the source, the others are the target."""
    is_source_T = jnp.arange(T) < jax.random.randint(key, (), 0, T)
    kept = {name: values for name, values in example.items() if name not in ("tokens", SEGMENT_IDS)}
    tokens_T = example["tokens"]
    return {
        **kept,
        "source": jnp.where(is_source_T, tokens_T, 0),
        "target": jnp.where(is_source_T, 0, tokens_T),
    }


READ = {"tokens": TOKENS, SEGMENT_IDS: np.int32(IS_TOKEN)}
IDS = {"start_id": 1, "end_id": 2, "padding_id": 0}
TASKS = {
    "masked": (task.masked_language_model(Reader(), mask_tokens), READ, mask_tokens),
    "language model": (task.language_model(Reader(), padding_id=0, z_loss=0.01), READ, None),
    "tagging": (
        task.tagging(Reader(3)),
        {**READ, "label": np.where(IS_TOKEN, TOKENS % 3, NOT_COUNTED).astype(np.int32)},
        None,
    ),
    "classification": (
        task.classification(Classifier(), input_name="tokens"),
        {**READ, "label": np.arange(SIZE, dtype=np.int32) % V},
        None,
    ),
    "sequence to sequence": (
        task.sequence_to_sequence(Translator(), **IDS, label_smoothing=0.1),
        {"source": TOKENS[::-1].copy(), "target": TOKENS},
        None,
    ),
    "denoising": (task.sequence_to_sequence(Translator(), **IDS, corrupt=cut), READ, cut),
}


@pytest.mark.slow
def test_micro_batches_draw_the_same_augmentation():
    def augment(key, example):
        return {**example, "drawn": jax.random.normal(key)}

    def loss(params, model_state, batch, key):
        mean = Mean.of(params["scale"] * batch["drawn"], batch["mask"])
        return mean, Aux(model_state, {"loss": mean})

    batch = {"index": jnp.arange(8, dtype=jnp.int32), "mask": jnp.arange(8) < 7}
    found = []
    for grad_fn in (mean_gradient, accumulated_gradient(2), accumulated_gradient(4)):
        config = StepConfig(
            init_fn=lambda key, batch: {"params": {"scale": jnp.ones(())}},
            loss_fn=with_inputs(loss, None, augment),
            tx=optimizers.sgd(1.0),
            grad_fn=grad_fn,
            augments=True,
        )
        _, metrics = update_state(config, config.init(batch, 0), batch)
        found.append(float(metrics["loss"].compute()))
    assert found[1:] == pytest.approx([found[0]] * 2, abs=1e-6)
    assert found[0] != 0


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_micro_batches_and_devices_change_neither_loss_nor_gradient(name, mesh8):
    learned, arrays, corrupt = TASKS[name]
    data = ArraySplits("tokens", train=ArraySource(arrays), evaluations={})

    def step(grad_fn, mesh=None):
        """Returns loss, metrics and gradient of the first step on a batch with two rows of padding."""
        experiment = Experiment(
            data=data,
            task=learned,
            augment=corrupt,
            tx=optimizers.sgd(1.0),
            num_steps=1,
            batch_size=SIZE,
            grad_fn=grad_fn,
        )
        batch = {name: jnp.asarray(values) for name, values in arrays.items()}
        batch |= {"index": jnp.arange(SIZE, dtype=jnp.int32), "mask": jnp.arange(SIZE) < SIZE - 2}
        config = StepConfig.of(experiment)
        state = config.init(batch, 0)
        before = state.params
        if mesh is not None:
            batch = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
        after, metrics = jax.jit(lambda state, batch: update_state(config, state, batch))(state, batch)
        gradient = jax.tree.map(lambda old, new: np.asarray(old) - np.asarray(new), before, after.params)
        return {name: np.asarray(mean.compute()) for name, mean in metrics.items()}, gradient

    whole, gradient = step(mean_gradient)
    assert np.isfinite(whole["loss"])
    assert float(whole["gradient_norm"]) > 0.01
    for found in (step(accumulated_gradient(2)), step(accumulated_gradient(4)), step(mean_gradient, mesh8)):
        chex.assert_trees_all_close(found, (whole, gradient), atol=1e-6)
