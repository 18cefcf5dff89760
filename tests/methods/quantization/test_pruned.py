"""A model whose channels were removed is quantised like any other one."""

import jax
import numpy as np
import optax
import pytest

from dl import Experiment, task
from dl.data import ArraySource, ArraySplits
from dl.errors import UserError
from dl.methods import structured_pruning
from dl.methods.quantization import calibrate, simulated
from dl.models.cnn import CNN
from dl.models.resnet import ResNet
from tests.helpers import quick_jit

RANDOM = np.random.default_rng(0)
IMAGES = ArraySource(
    {
        "image": RANDOM.uniform(size=(8, 16, 16, 3)).astype(np.float32),
        "label": np.arange(8, dtype=np.int32),
    }
)
BATCH = {**IMAGES[np.arange(8)], "index": np.arange(8), "mask": np.ones(8, bool)}
CONVOLUTIONS = CNN((96,), (80,), 10, pool=True)


def pruned(model):
    """Returns an experiment, its variables, and a pruning of half of its FLOPs."""
    experiment = Experiment(
        data=ArraySplits("images", train=IMAGES, evaluations={"test": IMAGES}),
        task=task.classification(model),
        tx=optax.sgd(0.1),
        num_steps=1,
        batch_size=8,
    )
    variables = quick_jit(experiment.task.init)(jax.random.key(0), BATCH)
    return experiment, variables, structured_pruning.plan(experiment, variables)


@pytest.mark.parametrize(
    ("model", "bits", "activations"),
    [
        (CONVOLUTIONS, 8, "static"),
        (CONVOLUTIONS, 4, "dynamic"),
        pytest.param(ResNet(10, (1, 1), width=64, small_images=True), 8, "static", marks=pytest.mark.slow),
    ],
)
def test_the_integers_of_a_pruned_model_equal_their_simulation(model, bits, activations):
    experiment, variables, pruning = pruned(model)
    smaller, small = pruning.changed(experiment), pruning.converted(variables)
    quantization = calibrate(smaller, small, bits=bits, activations=activations)
    integers = quantization.converted(small)
    predict = lambda task, variables: np.asarray(quick_jit(task.predict)(variables, BATCH))  # noqa: E731
    actual = predict(quantization.changed(smaller).task, integers)
    error = np.abs(actual - predict(smaller.task, small)).max()
    # In a deep model the last bit of a float decides about a few halves.
    difference = np.abs(actual - predict(simulated(smaller.task, quantization), small)).max()
    assert difference < 1e-4 or difference < 0.1 * error
    assert 1e-5 < error < (0.1 if bits == 8 else 1) * np.abs(actual).max()


def test_the_scales_are_those_of_the_masked_model():
    experiment, variables, pruning = pruned(CONVOLUTIONS)
    smaller, small = pruning.changed(experiment), pruning.converted(variables)
    found = calibrate(smaller, small, method="max").layers
    assert any(not isinstance(scale, str) for scale in found.values())
    expected = calibrate(experiment, pruning.masked(variables), method="max").layers
    assert list(found) == list(expected)
    for path, scale in found.items():
        if not isinstance(scale, str):
            assert scale == pytest.approx(expected[path], rel=1e-5)


def test_variables_of_the_full_model_are_refused():
    experiment, variables, pruning = pruned(CONVOLUTIONS)
    with pytest.raises(UserError, match="give the variables of the pruned model"):
        calibrate(pruning.changed(experiment), variables)


def test_watched_modules_see_the_full_model_with_zeros():
    experiment, variables, pruning = pruned(CONVOLUTIONS)
    smaller = pruning.changed(experiment)
    found = quick_jit(smaller.task.intermediates)(pruning.converted(variables), BATCH)
    expected = quick_jit(experiment.task.intermediates)(pruning.masked(variables), BATCH)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)
