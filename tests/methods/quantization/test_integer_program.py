"""A quantised model computes with integers, and gets what the same numbers give as floats."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from dl import Experiment, optimizers, task
from dl.data import ArraySource, ArraySplits
from dl.methods.quantization import Quantization, simulated
from dl.methods.quantization.layers import computing_integers

RANDOM = np.random.default_rng(0)
SCALE = 0.01


class Layers(nn.Module):
    """All kinds of layers, with a batch norm that follows a convolution and one that does not."""

    @nn.compact
    def __call__(self, image_BHWC, train=False):
        x = nn.Conv(8, (3, 3), strides=2, use_bias=False, name="conv")(image_BHWC)
        first = x
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="norm")(x) + 0.1 * first)
        x = nn.Conv(8, (3, 3), feature_group_count=8, name="depthwise")(x)
        x = nn.BatchNorm(use_running_average=not train, use_scale=False, name="norm_apart")(jnp.tanh(x))
        x = nn.Conv(6, (2,), padding="CIRCULAR", name="rows")(x)
        x = nn.DenseGeneral((2, 3), name="split")(x)
        x = nn.DenseGeneral(5, axis=(-2, -1), name="join")(x)
        return nn.Dense(3, name="head")(x.mean((1, 2)))


PATHS = ("conv", "depthwise", "rows", "split", "join", "head")
TASK = task.classification(Layers())
BATCH = {
    "image": jnp.asarray(RANDOM.uniform(size=(4, 9, 8, 3)), jnp.float32),
    "label": jnp.array([0, 1, 2, 1]),
    "index": jnp.arange(4),
    "mask": jnp.ones(4, bool),
}
ONE = jax.tree.map(lambda array: array[:1], BATCH)


def with_random_norms(variables):
    """Returns the variables with statistics and factors of batch norms that are not 0 and 1."""
    draw = lambda leaf: jnp.asarray(RANDOM.uniform(0.5, 2.0, leaf.shape), jnp.float32)  # noqa: E731
    params = {
        name: jax.tree.map(draw, leaves) if "norm" in name else leaves
        for name, leaves in variables["params"].items()
    }
    return {"params": params, "batch_stats": jax.tree.map(draw, variables["batch_stats"])}


@pytest.fixture(scope="module")
def variables():
    return with_random_norms(jax.jit(TASK.init)(jax.random.key(0), BATCH))


def outputs_of(task, variables, batch=BATCH):
    return np.asarray(jax.jit(task.predict)(variables, batch))


@pytest.mark.parametrize(
    ("inputs", "bits"), [(SCALE, 8), ("dynamic", 4), pytest.param("float", 8, marks=pytest.mark.slow)]
)
def test_integers_equal_their_simulation(variables, inputs, bits):
    rules = {path: "float" if path == "depthwise" else inputs for path in PATHS}
    quantization = Quantization(layers=rules, bits=bits)
    experiment_task = quantized_task(quantization)
    integers = quantization.converted(variables)
    actual = outputs_of(experiment_task, integers)
    np.testing.assert_allclose(actual, outputs_of(simulated(TASK, quantization), variables), atol=1e-4)
    assert np.abs(actual - outputs_of(TASK, variables)).max() > 1e-4, "nothing was rounded"
    np.testing.assert_allclose(outputs_of(experiment_task, integers, ONE), actual[:1], atol=1e-5)
    stored = {
        path[-2]: leaf for path, leaf in flatten_dict(integers["params"]).items() if path[-1] == "kernel"
    }
    assert {leaf.dtype for leaf in stored.values()} == {jnp.dtype(jnp.int8 if bits == 8 else jnp.uint8)}
    if bits == 4:
        assert stored["conv"].shape == (3, 3, 3, 4)
        assert stored["head"].shape == (5, 2)


def quantized_task(quantization):
    source = ArraySource({name: np.asarray(BATCH[name]) for name in ("image", "label")})
    data = ArraySplits("images", train=source, evaluations={"test": source})
    experiment = Experiment(data=data, task=TASK, tx=optimizers.adam(1e-3), num_steps=2, batch_size=4)
    return quantization.changed(experiment).task


def test_the_program_multiplies_integers(variables):
    quantization = Quantization(layers=dict.fromkeys(PATHS, SCALE))
    lowered = jax.jit(quantized_task(quantization).predict).lower(quantization.converted(variables), BATCH)
    products = [
        line
        for line in lowered.as_text().splitlines()
        if "stablehlo.convolution" in line or "stablehlo.dot_general" in line or "onednn" in line
    ]
    assert len(products) >= len(PATHS)
    assert all("xi8>" in line and "xi32>" in line and "f32" not in line for line in products), products


def test_a_dense_layer_and_a_convolution_are_those_of_numpy():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, image_BHWC, train=False):
            x_BHWC = nn.Conv(5, (1, 1), name="conv")(image_BHWC)
            return nn.Dense(2, name="dense")(x_BHWC[:, 0, 0])

    two = task.classification(Two())
    variables = jax.jit(two.init)(jax.random.key(1), BATCH)
    quantization = Quantization(layers={"conv": 0.02, "dense": "dynamic"})
    params = jax.tree.map(np.asarray, quantization.converted(variables)["params"])
    x = np.asarray(BATCH["image"])[:, 0, 0]
    for name, scale in (("conv", np.float32(0.02)), ("dense", None)):
        if scale is None:
            scale = np.abs(x).max(-1, keepdims=True) / np.float32(127)
        kernel = params[name]["kernel"].reshape(x.shape[-1], -1).astype(np.int64)
        sums = np.clip(np.round(x / scale), -127, 127).astype(np.int64) @ kernel
        x = sums * (scale * params[name]["kernel_scale"]) + params[name]["bias"]
    with computing_integers(quantization.layers, quantization.bits):
        actual = two.predict({"params": params}, BATCH)
    np.testing.assert_allclose(actual, x, rtol=1e-5, atol=1e-6)
