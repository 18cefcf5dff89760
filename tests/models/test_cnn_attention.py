import functools

import jax
import numpy as np
import pytest

import dl
from dl.data.synthetic.patch_order import PATCH
from dl.models.blocks.attention import Attention
from dl.models.cnn_attention import CNNAttention, FeatureMap, PooledCNN
from dl.runs.console import Console
from experiments import cnn_attention_hybrid
from tests.helpers import quick_jit

SMALL = FeatureMap(channels=(2, 3))
HYBRID = CNNAttention(24, SMALL, hidden=5, num_heads=2, dim=4)
PLAIN = PooledCNN(24, SMALL, hidden=5)
SIDE = 2 * PATCH


@pytest.fixture(scope="module")
def images():
    """Two images: four patches in the middle of their quarters, and the same ones in another order."""
    patches = np.random.default_rng(0).uniform(size=(4, 8, 8)).astype(np.float32)
    images = np.zeros((2, SIDE, SIDE, 1), np.float32)
    for image, order in zip(images, [(0, 1, 2, 3), (3, 1, 0, 2)], strict=True):
        for place, patch in enumerate(order):
            row, column = (PATCH * k + 8 for k in divmod(place, 2))
            image[row : row + 8, column : column + 8, 0] = patches[patch]
    return images


def logits_of(model, images):
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    variables = jax.tree.map(lambda leaf: np.float32(random.normal(size=leaf.shape)), shapes)
    return variables, np.asarray(quick_jit(model.apply)(variables, images))


def test_only_attention_tells_one_order_from_another(images):
    _, plain = logits_of(PLAIN, images)
    np.testing.assert_allclose(plain[0], plain[1], atol=1e-6)
    assert np.ptp(plain[0]) > 1e-2
    _, hybrid = logits_of(HYBRID, images)
    assert np.abs(hybrid[0] - hybrid[1]).max() > 1e-2


def test_the_weights_of_the_attention_sum_to_one_at_each_position(images):
    variables, logits = logits_of(HYBRID, images)
    apply = quick_jit(functools.partial(HYBRID.apply, mutable=["intermediates"]))
    with_weights, state = apply(variables, images)
    (weights_BNTT,) = state["intermediates"]["attention"]["weights"]
    positions = (SIDE // 8) ** 2  # two max-pools and the mean of 2×2
    assert weights_BNTT.shape == (2, 2, positions, positions)
    assert weights_BNTT.min() >= 0
    np.testing.assert_allclose(weights_BNTT.sum(-1), np.ones((2, 2, positions)), atol=1e-5)
    np.testing.assert_allclose(with_weights, logits, atol=1e-5)


def test_the_hybrid_is_backbone_positions_attention_mean_and_dense_layers(images):
    """The parts one after the other, in NumPy but for the backbone and the attention."""
    variables, logits = logits_of(HYBRID, images)
    params = variables["params"]

    def dense(x, name):
        return x @ params[name]["kernel"] + params[name]["bias"]

    x_BHWC = np.asarray(quick_jit(SMALL.apply)({"params": params["backbone"]}, images))
    x_BTC = x_BHWC.reshape(2, 6, 2, 6, 2, 3).mean((2, 4)).reshape(2, 36, 3)
    x_BTD = dense(x_BTC, "project") + params["positions"]
    norm = (x_BTD - x_BTD.mean(-1, keepdims=True)) / np.sqrt(x_BTD.var(-1, keepdims=True) + 1e-6)
    norm = norm * params["norm"]["scale"] + params["norm"]["bias"]
    attended, _ = quick_jit(Attention(2).apply)({"params": params["attention"]}, norm)
    pooled_BD = (x_BTD + np.asarray(attended)).mean(1)
    expected = dense(np.maximum(dense(pooled_BD, "hidden"), 0), "head")
    np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.slow
def test_the_hybrid_learns_which_of_two_orders_it_sees(mesh1):
    experiment = cnn_attention_hybrid.experiment(num_classes=2, num_epochs=1)
    result = dl.train(experiment, mesh=mesh1, console=Console(is_quiet=True))
    assert result.metrics["test"]["accuracy"] > 0.9  # chance is 0.5
