"""Quantised experiments are trained, saved and loaded by the one trainer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl import Experiment, optimizers, task
from dl.data import ArraySource, ArraySplits
from dl.experiment import variable_shapes
from dl.inference.load import load_run
from dl.methods.quantization import calibrate
from dl.models.airbench import Airbench
from dl.models.cnn import CNN, ConvNet
from dl.models.mlp import MLP
from dl.models.weights.files import load_safetensors, save_safetensors
from dl.training.loop import train
from tests.helpers import quick_jit

RANDOM = np.random.default_rng(0)


def source_of(size):
    features = RANDOM.normal(size=(size, 6)).astype(np.float32)
    return ArraySource({"features": features, "label": np.int32(features.sum(1) > 0)})


DATA = ArraySplits("halfspace", train=source_of(64), evaluations={"test": source_of(40)})
EXPERIMENT = Experiment(
    data=DATA,
    task=task.classification(MLP(hidden=(40, 40), num_classes=2), input_name="features"),
    tx=optimizers.adam(1e-2),
    num_steps=30,
    batch_size=16,
    eval_batch_size=40,
)


@pytest.fixture(scope="module")
def trained():
    return train(EXPERIMENT)


def test_a_run_of_integers(trained, tmp_path):
    variables = jax.tree.map(np.asarray, dict(trained.variables))
    quantization = calibrate(EXPERIMENT, variables, num_examples=64)
    integers = quantization.converted(variables)
    quantized = dataclasses.replace(quantization.changed(EXPERIMENT), warm_start=integers)
    train(quantized, folder=tmp_path / "run")
    loaded = load_run(tmp_path / "run", quantized)
    assert jax.tree.map(lambda leaf: leaf.dtype, loaded.variables) == jax.tree.map(
        lambda leaf: leaf.dtype, integers
    )
    jax.tree.map(np.testing.assert_array_equal, dict(loaded.variables), dict(integers))
    assert jnp.dtype(jnp.int8) in {leaf.dtype for leaf in jax.tree.leaves(loaded.params)}
    features = DATA.evaluations["test"][np.arange(40)]["features"]
    logits = loaded.predict(features)
    np.testing.assert_allclose(logits, trained.predict(features), atol=0.1)
    accuracy = (logits.argmax(-1) == DATA.evaluations["test"][np.arange(40)]["label"]).mean()
    np.testing.assert_allclose(loaded.metrics["test"]["accuracy"], accuracy, rtol=1e-6)
    assert quantization.stored(loaded.variables) is loaded.variables


@pytest.mark.slow
def test_training_with_rounded_weights(trained, tmp_path):
    quantization = calibrate(EXPERIMENT, trained.variables, bits=4, qat=True, num_examples=64)
    started = quantization.converted(trained.variables)
    tuned = dataclasses.replace(quantization.changed(EXPERIMENT), warm_start=started, num_steps=12)
    result = train(tuned, folder=tmp_path / "run")
    assert {leaf.dtype for leaf in jax.tree.leaves(result.params)} == {jnp.dtype(jnp.float32)}
    with pytest.raises(AssertionError):
        jax.tree.map(np.testing.assert_array_equal, dict(result.params), dict(trained.params))
    deployable = quantization.stored(result.variables)
    assert jnp.dtype(jnp.uint8) in {leaf.dtype for leaf in jax.tree.leaves(deployable)}
    features = DATA.evaluations["test"][np.arange(40)]["features"]
    predict = quick_jit(quantization.finished.changed(EXPERIMENT).task.predict)
    np.testing.assert_allclose(
        predict(deployable, {"features": features}), result.predict(features), rtol=1e-5, atol=1e-5
    )


def test_the_loss_of_training_has_the_gradient_of_rounded_weights(trained):
    quantization = calibrate(EXPERIMENT, trained.variables, qat=True, num_examples=64)
    changed = quantization.changed(EXPERIMENT).task
    batch = {**DATA.train[np.arange(16)], "index": np.arange(16), "mask": np.ones(16, bool)}

    def loss(params, key):
        return changed.loss(params, {}, batch, key)[0].compute()

    in_training, gradient = quick_jit(jax.value_and_grad(loss))(trained.params, jax.random.key(0))
    in_integers = quick_jit(lambda params: loss(params, None))(trained.params)
    np.testing.assert_allclose(in_training, in_integers, rtol=1e-5)
    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    ("model", "side"),
    [
        pytest.param(CNN(channels=(32,), hidden=(128,), num_classes=10), 28, id="classic"),
        pytest.param(ConvNet(num_classes=10), 28, id="pyramid", marks=pytest.mark.slow),
        pytest.param(Airbench(10, (32, 96, 192)), 28, id="fashion"),
    ],
)
def test_the_file_is_at_least_3_7_times_smaller(model, side, tmp_path):
    images = ArraySource({"image": np.zeros((8, side, side, 1), np.float32), "label": np.zeros(8, np.int32)})
    experiment = dataclasses.replace(
        EXPERIMENT,
        data=ArraySplits("images", train=images, evaluations={"test": images}),
        task=task.classification(model),
    )
    shapes = variable_shapes(experiment)
    variables = jax.tree.map(lambda leaf: RANDOM.normal(size=leaf.shape).astype(np.float32), dict(shapes))
    quantization = calibrate(experiment, variables, activations="none")
    save_safetensors(tmp_path / "float", variables)
    save_safetensors(tmp_path / "int8", quantization.converted(variables))
    assert (tmp_path / "float").stat().st_size >= 3.7 * (tmp_path / "int8").stat().st_size
    assert jnp.dtype(jnp.int8) in {
        leaf.dtype for leaf in jax.tree.leaves(load_safetensors(tmp_path / "int8"))
    }
