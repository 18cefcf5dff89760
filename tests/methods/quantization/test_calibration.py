"""Calibration: which layers have integers, and the scales of their inputs, from training examples only."""

import dataclasses
import json

import flax.linen as nn
import jax
import numpy as np
import pytest

from dl import Experiment, optimizers, task
from dl.data import ArraySource, ArraySplits
from dl.errors import UserError
from dl.methods.quantization import Quantization, calibrate
from dl.methods.quantization.calibration import of_least_error, of_percentile
from dl.models.gpt2 import GPT2

RANDOM = np.random.default_rng(0)
FEATURES = RANDOM.normal(size=(64, 6)).astype(np.float32)


class Net(nn.Module):
    """Dense layers, of which `first` passes on its inputs scaled by 2."""

    @nn.compact
    def __call__(self, features_BD, train=False):
        x_BD = nn.Dense(
            6, use_bias=False, name="first", kernel_init=lambda *_: 2 * np.eye(6, dtype=np.float32)
        )(features_BD)
        x_BD = nn.relu(nn.Dense(40, name="wide")(x_BD))
        return nn.Dense(2, name="head")(x_BD)


class Forbidden:
    """Examples that nothing may read."""

    def __init__(self, spec):
        self.spec = spec

    def __len__(self):
        return 8

    def __getitem__(self, rows):
        raise AssertionError("an example of the evaluation was read")


def experiment_of(model, **features):
    source = ArraySource(features)
    name = next(iter(features))
    kind = task.language_model(model) if name == "tokens" else task.classification(model, input_name=name)
    data = ArraySplits("rows", train=source, evaluations={"test": Forbidden(source.spec)})
    return Experiment(data=data, task=kind, tx=optimizers.adam(1e-3), num_steps=2, batch_size=4)


@pytest.fixture(scope="module")
def net():
    experiment = experiment_of(Net(), features=FEATURES, label=np.zeros(64, np.int32))
    batch = {"features": FEATURES, "label": np.zeros(64, np.int32)}
    return experiment, jax.jit(experiment.task.init)(jax.random.key(0), batch)


def test_the_scale_is_that_of_the_magnitudes_of_the_inputs(net):
    quantization = calibrate(*net, method="max", num_examples=64, batch_size=16)
    assert set(quantization.layers) == {"wide", "head"}
    assert quantization.layers["head"] == "float", "each input is used by two products only"
    np.testing.assert_allclose(quantization.layers["wide"], 2 * np.abs(FEATURES).max() / 127, rtol=1e-6)
    ninety = calibrate(*net, method="percentile", percentile=90, num_examples=64).layers["wide"]
    expected = np.percentile(2 * np.abs(FEATURES), 90) / 127
    np.testing.assert_allclose(ninety, expected, rtol=0.02)


def test_the_limit_of_least_error_is_that_of_a_search():
    magnitudes = np.abs(RANDOM.standard_t(2, 20000))
    largest = magnitudes.max()
    counts = np.histogram(magnitudes, 2048, (0, largest))[0]

    def error(limit):
        step = limit * largest / 127
        return np.mean((np.clip(np.round(magnitudes / step), 0, 127) * step - magnitudes) ** 2)

    limits = np.linspace(0.01, 1, 100)
    found = of_least_error(counts)
    assert found < 1, "clipping a heavy tail has the smaller error"
    assert error(found) <= 1.02 * min(map(error, limits))
    assert of_percentile(np.array([5, 3, 2, 0]), 80) == 0.5
    assert of_percentile(np.array([5, 3, 2, 0]), 100) == 0.75


def test_the_choice_of_layers_and_a_record_of_it(net):
    everything = calibrate(*net, activations="dynamic", float_layers=(), bits=4)
    assert everything.layers == {"first": "float", "wide": "dynamic", "head": "float"}
    assert set(calibrate(*net, activations="none").layers.values()) == {"float"}
    assert set(calibrate(*net, float_layers=("^w",)).layers) == {"first", "head"}
    recorded = json.loads(json.dumps(dataclasses.asdict(everything)))
    assert Quantization(**recorded) == everything


@pytest.mark.slow
def test_scanned_layers_and_embeddings():
    gpt = GPT2(vocab_size=40, max_length=8, dim=8, num_layers=3, num_heads=2, is_scanned=True)
    tokens = RANDOM.integers(0, 40, (8, 8)).astype(np.int32)
    experiment = experiment_of(gpt, tokens=tokens)
    batch = {"tokens": tokens, "index": np.arange(8), "mask": np.ones(8, bool)}
    variables = jax.jit(experiment.task.init)(jax.random.key(0), batch)
    quantization = calibrate(experiment, variables, method="max")
    tables = [path for path in quantization.layers if "embed" in path]
    assert tables, "a model that begins with an embedding has no float layer"
    assert set(quantization.stacked.values()) == {1}
    params = quantization.converted(variables)["params"]
    path = next(path for path in quantization.stacked if path.endswith("feed_forward/in"))
    leaves = params
    for name in path.split("/"):
        leaves = leaves[name]
    assert leaves["kernel"].shape[0] == 3
    assert leaves["kernel_scale"].shape == (3, leaves["kernel"].shape[-1])
    assert leaves["input_scale"].shape == (3,)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"float_layers": ("nowhere",)}, "'nowhere' matches no layer; they are first, wide, head"),
        ({"float_layers": "wide"}, "must be a tuple"),
        ({"float_layers": (".",)}, "no layer is left"),
        ({"bits": 5}, "bits=5"),
        ({"method": "mean"}, "choose one of max, percentile, mse"),
        ({"activations": "integer"}, "choose one of static, dynamic, none"),
        ({"num_examples": 0}, "num_examples"),
        ({"percentile": 0}, "percentile"),
    ],
)
def test_mistakes(net, how, message):
    with pytest.raises(UserError, match=message):
        calibrate(*net, **how)


def test_a_configuration_that_does_not_fit(net):
    _, variables = net
    with pytest.raises(UserError, match="'middle' is not in the model"):
        Quantization(layers={"middle": "float"}).converted(variables)
    quantization = Quantization(layers={"wide": "float"})
    with pytest.raises(UserError, match="already holds integers"):
        quantization.converted(quantization.converted(variables))
    for inputs in (-1.0, float("nan"), "static", True):
        with pytest.raises(UserError, match="inputs of 'wide'"):
            Quantization(layers={"wide": inputs})
    with pytest.raises(UserError, match="names no layer"):
        Quantization(layers={})
