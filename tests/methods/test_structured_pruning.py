"""Structured pruning: the smaller model is the masked model, and trains like any other."""

import dataclasses
import json

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from dl import Experiment, task
from dl.data import ArraySource, ArraySplits
from dl.errors import UserError
from dl.flops import count_flops
from dl.methods import structured_pruning
from dl.methods.structured_pruning import StructuredPruning, format_indices, parse_indices
from dl.models.cnn import CNN, ConvNet
from dl.models.gpt2 import GPT2
from dl.models.mlp import MLP, ResidualMLP
from dl.models.mobilenet import MobileNetV2
from dl.models.resnet import ResNet
from dl.models.vgg import VGG
from dl.models.vit import ViT
from dl.task import Model
from dl.training.loop import train
from dl.training.signals import Stopped
from tests.helpers import EXPERIMENT, SignallingConsole, quick_jit

RANDOM = np.random.default_rng(0)
IMAGES = ArraySource(
    {
        "image": RANDOM.uniform(size=(4, 32, 32, 3)).astype(np.float32),
        "label": np.arange(4, dtype=np.int32),
    }
)
TOKENS = ArraySource({"tokens": RANDOM.integers(0, 13, (4, 8)).astype(np.int32)})

MODELS = {
    "mlp": MLP((16, 12), 10),
    "vgg": VGG(10, (1, 1), (8, 12), hidden=(16,)),
    "resnet": ResNet(10, (1, 1), width=8),
    "mobilenet": MobileNetV2(10, stages=((1, 16, 1, 1), (6, 16, 2, 2)), features=32),
    "vit": ViT(10, dim=16, num_layers=1, num_heads=4, patch_size=8, dropout=0.1),
}
MORE_MODELS = {
    "cnn": CNN((8, 12), (16,), 10, pool=True),
    "convnet": ConvNet(10, (8, 12, 16)),
    "bottleneck": ResNet(10, (1,), width=8, bottleneck=True, small_images=True),
    "residual mlp": ResidualMLP(16, 24, 1, 10, 0.1, 0.1, 0.1),
    "gpt2": GPT2(13, 8, 16, 1, 4, dropout=0.1),
    "gpt2 in a scan": GPT2(13, 8, 16, 2, 4, is_scanned=True, remat="block"),
}


def experiment_of(model):
    is_text = isinstance(model, GPT2)
    source = TOKENS if is_text else IMAGES
    return Experiment(
        data=ArraySplits("random", train=source, evaluations={"test": source}),
        task=task.language_model(model) if is_text else task.classification(model),
        tx=optax.sgd(0.1),
        num_steps=2,
        batch_size=4,
    )


def batch_of(experiment):
    batch = {**experiment.data.train[np.arange(4)], "index": np.arange(4), "mask": np.ones(4, bool)}
    return batch if experiment.preprocess is None else experiment.preprocess(batch)


def trained(experiment):
    """Returns variables of random numbers, so that no bias or scale has a special value."""
    shapes = jax.eval_shape(experiment.task.init, jax.random.key(0), batch_of(experiment))
    random = np.random.default_rng(1)

    def draw(path, leaf):
        low = 0.5 if path[-1].key in ("var", "scale") else -0.3
        return jnp.asarray(random.uniform(low, low + 0.6, leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def check_equals_masked(model, *, with_gradient=False):
    experiment = experiment_of(model)
    batch, variables = batch_of(experiment), trained(experiment)
    pruning = structured_pruning.plan(experiment, variables, importance="random", seed=1)
    smaller, small = pruning.changed(experiment), pruning.converted(variables)
    expected = quick_jit(experiment.task.predict)(pruning.masked(variables), batch)
    outputs = quick_jit(smaller.task.predict)(small, batch)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(outputs / scale, expected / scale, atol=1e-5)

    full = count_flops(experiment.task.predict, variables, batch)
    assert 0.2 * full < count_flops(smaller.task.predict, small, batch) <= 0.5 * full
    shapes = jax.eval_shape(smaller.task.init, jax.random.key(0), batch)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, small)
    if not with_gradient:
        return
    # The gradient is that of the masked model, where its parameters are kept.
    state = {name: tree for name, tree in small.items() if name != "params"}
    masked = pruning.masked(variables)
    masked_state = {name: tree for name, tree in masked.items() if name != "params"}
    got = quick_jit(jax.grad(lambda params: smaller.task.loss(params, state, batch, None)[0].compute()))(
        small["params"]
    )
    wanted = quick_jit(
        jax.grad(lambda params: experiment.task.loss(params, masked_state, batch, None)[0].compute())
    )(masked["params"])
    kept = flatten_dict(pruning.converted({**masked, "params": wanted})["params"])
    largest = max(np.abs(leaf).max() for leaf in kept.values())
    for path, leaf in flatten_dict(got).items():
        np.testing.assert_allclose(leaf / largest, kept[path] / largest, atol=2e-5)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "mlp" else pytest.mark.slow) for name in MODELS]
)
def test_the_pruned_model_is_the_masked_model(name):
    check_equals_masked(MODELS[name], with_gradient=name in ("mlp", "resnet"))


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE_MODELS)
def test_more_models_are_pruned(name):
    check_equals_masked(MORE_MODELS[name], with_gradient=name == "gpt2 in a scan")


class Odd(nn.Module):
    """Concatenation, groups, a depthwise convolution, padded channels, and an activation with f(0) ≠ 0."""

    @nn.compact
    def __call__(self, image_BHWC, train=False):
        x_BHWC = nn.sigmoid(nn.Conv(4, (3, 3), strides=4, name="one")(image_BHWC))
        y_BHWC = nn.Conv(6, (3, 3), strides=4, name="two")(image_BHWC)
        z_BHWC = jnp.concatenate([x_BHWC, y_BHWC], -1)
        z_BHWC = nn.Conv(20, (3, 3), feature_group_count=10, name="depthwise")(z_BHWC)
        z_BHWC = nn.Conv(12, (1, 1), feature_group_count=2, name="grouped")(z_BHWC)
        wide_BHWC = jnp.pad(y_BHWC, ((0, 0), (0, 0), (0, 0), (3, 3)))
        first_BHWC, second_BHWC = jnp.split(z_BHWC + wide_BHWC, 2, -1)
        x_BD = (first_BHWC * nn.silu(second_BHWC)).mean((1, 2))
        return nn.Dense(10, name="head")(nn.relu(nn.Dense(8, name="hidden")(x_BD)))


def test_concatenations_groups_and_gates_are_pruned_together():
    check_equals_masked(Odd(), with_gradient=True)


def test_a_model_of_plain_functions_is_pruned():
    def init(key, inputs):
        return {
            "params": {
                "first": 0.1 * jax.random.normal(key, (3072, 9)),
                "second": 0.1 * jax.random.normal(key, (9, 10)),
            }
        }

    def apply(params, model_state, inputs, key):
        flat = inputs.reshape(len(inputs), -1)
        return jnp.tanh(flat @ params["first"]) @ params["second"], model_state

    experiment = experiment_of(Model(init, apply))
    variables = experiment.task.init(jax.random.key(0), batch_of(experiment))
    pruning = structured_pruning.plan(experiment, variables)
    assert pruning.widths() == {"first:1": (4, 9), "second:0": (4, 9)}
    # The importance of a hidden unit is the norm of both its vectors; the largest are kept.
    first, second = (np.asarray(variables["params"][name]) for name in ("first", "second"))
    largest = np.sort(np.argsort(-np.sqrt((first**2).sum(0) + (second**2).sum(1)))[:4])
    assert pruning.groups[0]["kept"] == format_indices(largest)


def test_a_residual_stream_is_one_group_and_heads_are_another():
    experiment = experiment_of(MODELS["vit"])
    groups = structured_pruning.experiment_graph(experiment).groups()
    axes = {frozenset(path.removeprefix("params/") for path, _ in group.axes): group for group in groups}
    stream = next(group for names, group in axes.items() if "patches/kernel" in names)
    assert len(stream.units) == 16
    names = {path for path, _ in stream.axes}
    assert {
        "params/positions",
        "params/class_token",
        "params/block0/mlp1/bias",
        "params/head/kernel",
    } <= names
    [heads] = [
        group
        for names, group in axes.items()
        if "block0/attention/query/kernel" in names and "patches/kernel" not in names
    ]
    assert len(heads.units) == 4
    # The number of heads stays: each of the 4 heads has 4 dimensions in the kernel of the query.
    assert ("params/block0/attention/query/kernel", 1) in heads.axes
    assert ("params/block0/attention/out/kernel", 0) in heads.axes


def test_channels_of_frozen_parameters_stay():
    experiment = experiment_of(MODELS["mlp"])
    variables = trained(experiment)
    frozen = dataclasses.replace(experiment, frozen=("Dense_0/kernel",))
    pruning = structured_pruning.plan(frozen, variables, flops_fraction=0.9995)
    assert list(pruning.widths()) == ["Dense_1/bias:0", "Dense_1/kernel:1", "Dense_2/kernel:0"]


def test_widths_are_multiples_within_limits():
    experiment = experiment_of(MLP((40, 24), 10))
    variables = trained(experiment)
    pruning = structured_pruning.plan(
        experiment, variables, flops_fraction=0.7, importance="l1", multiple_of=8, min_width=16
    )
    kept = {axis: width for axis, (width, _) in pruning.widths().items()}
    assert all(width % 8 == 0 and width >= 16 for width in kept.values())
    least = (3072 * 16 + 16 * 16 + 16 * 10) / (3072 * 40 + 40 * 24 + 24 * 10)
    with pytest.raises(UserError, match=f"flops_fraction=0.3 cannot be met: .* at least {least:.3f}"):
        structured_pruning.plan(experiment, variables, flops_fraction=0.3, multiple_of=8, min_width=16)
    left_out = structured_pruning.plan(experiment, variables, leave_out=("Dense_2",))
    assert all(axis.startswith(("Dense_0", "Dense_1/kernel:0")) for axis in left_out.widths())


def test_taylor_keeps_the_units_that_the_loss_needs():
    experiment = experiment_of(MLP((6,), 10))
    variables = trained(experiment)
    gradients = jax.tree.map(jnp.zeros_like, variables["params"])
    gradients["Dense_0"]["bias"] = jnp.array([0.0, 1, 0, 1, 0, 1])
    pruning = structured_pruning.plan(experiment, variables, importance="taylor", gradients=gradients)
    assert pruning.groups[0]["kept"] == "1,3,5"


@pytest.mark.slow
def test_a_pruned_model_is_trained_and_resumed_with_the_same_bits(tmp_path, mesh1):
    batch = {"features": np.zeros((2, 3), np.float32)}
    variables = quick_jit(EXPERIMENT.task.init)(jax.random.key(0), batch)
    planned = structured_pruning.plan(EXPERIMENT, variables)
    pruning = StructuredPruning(**json.loads(json.dumps(dataclasses.asdict(planned))))  # as a run records it
    assert pruning == planned
    start = jax.tree.map(np.asarray, pruning.converted(variables))
    smaller = dataclasses.replace(pruning.changed(EXPERIMENT), warm_start=start)
    whole = train(smaller, mesh=mesh1)
    assert whole.params["Dense_0"]["kernel"].shape == (3, 4)
    with pytest.raises(Stopped):
        train(smaller, tmp_path / "run", mesh=mesh1, log_every=1, console=SignallingConsole(5))
    resumed = train(smaller, tmp_path / "run", mesh=mesh1)
    chex.assert_trees_all_equal(whole.params, resumed.params)
    assert resumed.predict(np.zeros((2, 3), np.float32)).shape == (2, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flops_fraction": 0}, "flops_fraction=0 "),
        ({"importance": "l3"}, "importance='l3' is unknown; choose l1, l2, taylor or random"),
        ({"importance": "taylor"}, "needs gradients"),
        ({"leave_out": ("missing",)}, "the pattern 'missing' matches no parameter"),
        (
            {"leave_out": ("Dense",)},
            "the model has no channels outside leave_out and frozen parameters that can be removed",
        ),
        ({"max_pruned": 1.0}, "max_pruned"),
    ],
)
def test_a_mistake_is_one_line(change, message):
    experiment = experiment_of(MLP((6,), 10))
    with pytest.raises(UserError, match=message):
        structured_pruning.plan(experiment, trained(experiment), **change)


def test_a_model_without_hidden_channels_is_refused():
    experiment = experiment_of(MLP((), 10))
    with pytest.raises(UserError, match="the model has no channels that can be removed"):
        structured_pruning.plan(experiment, trained(experiment))


def test_variables_of_another_model_are_refused():
    experiment = experiment_of(MLP((6,), 10))
    variables = trained(experiment)
    pruning = structured_pruning.plan(experiment, variables)
    other = trained(experiment_of(MLP((7,), 10)))
    with pytest.raises(UserError, match="was planned for 6 indices of axis 0"):
        pruning.converted(other)
    with pytest.raises(UserError, match="give the variables of the pruned model"):
        pruning.changed(experiment).task.predict(variables, batch_of(experiment))
    with pytest.raises(UserError, match="must have kept, size and axes"):
        StructuredPruning(groups=[{"kept": "0"}])


def test_indices_are_written_as_runs():
    assert format_indices([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"
    np.testing.assert_array_equal(parse_indices("0-2,5,7-8", 9), [0, 1, 2, 5, 7, 8])
    for text in ("", "3-1", "1,1", "9", "a", "0-9"):
        with pytest.raises(UserError, match="must be increasing indices below 9"):
            parse_indices(text, 9)
