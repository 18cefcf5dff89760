"""LIME, permutation importance and counterfactuals against linear models."""

import sys

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.inspection import permutation_importance as of_sklearn
from sklearn.linear_model import LinearRegression

from dl.analysis import attributions
from dl.errors import UserError

RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(8, 3)).astype(np.float32)
INPUTS = RNG.normal(size=(4, 8)).astype(np.float32)
TARGETS = np.array([0, 1, 2, 1])


def linear(inputs_BD):
    return inputs_BD @ WEIGHTS


def cosine(one, other):
    return (one * other).sum(-1) / np.linalg.norm(one, axis=-1) / np.linalg.norm(other, axis=-1)


def test_tabular_lime_recovers_a_linear_model():
    scale = np.linspace(0.5, 2, 8)
    found = attributions.tabular_lime(linear, INPUTS, TARGETS, scale=scale, num_samples=200)
    assert (cosine(found.weights / scale, WEIGHTS[:, TARGETS].T) > 0.999).all()
    np.testing.assert_allclose(found.intercepts, linear(INPUTS)[range(4), TARGETS], atol=0.05)
    assert (found.fidelity > 0.999).all()


def test_lime_recovers_a_linear_model_of_features():
    found = attributions.lime(linear, INPUTS, TARGETS, background=0.0, num_samples=200)
    assert (cosine(found.weights, INPUTS * WEIGHTS[:, TARGETS].T) > 0.999).all()
    assert (found.fidelity > 0.999).all()


def test_lime_of_superpixels_and_tokens():
    images = RNG.normal(size=(1, 6, 6, 2)).astype(np.float32)
    segments = attributions.grid_superpixels(6, 6, 3, 2)
    found = attributions.lime(
        lambda x: x.sum((1, 2, 3))[:, None], images, background=0.0, segments=segments, num_samples=100
    )
    sums = images.reshape(1, 3, 2, 2, 3, 2).sum((2, 4, 5)).reshape(1, 6)
    assert cosine(found.weights, sums) > 0.999
    tokens = np.array([[5, 9, 5, 2]])
    found = attributions.lime(
        lambda x: jnp.equal(x, 9).sum(1, keepdims=True).astype(float), tokens, background=0, num_samples=100
    )
    np.testing.assert_allclose(found.weights, [[0, 1, 0, 0]], atol=0.02)


def test_low_fidelity_tells_that_a_linear_model_does_not_explain_the_score():
    found = attributions.tabular_lime(
        lambda x: jnp.cos(6 * x).prod(1, keepdims=True), INPUTS[:, :2], scale=1.0, num_samples=300
    )
    assert (found.fidelity < 0.3).all()


def test_superpixels_by_colour():
    pytest.importorskip("skimage")
    image = np.zeros((32, 32, 3), np.float32)
    image[:, 13:] = 1
    segments = attributions.slic_superpixels(image, 16)
    assert segments.shape == (32, 32)
    assert set(segments.ravel()) == set(range(segments.max() + 1))
    assert segments.max() > 3
    assert not set(segments[:, :13].ravel()) & set(segments[:, 13:].ravel())


def test_superpixels_by_colour_need_scikit_image(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    with pytest.raises(UserError, match="slic_superpixels needs scikit-image: pip install scikit-image"):
        attributions.slic_superpixels(np.zeros((4, 4, 3)), 2)


def accuracy(scores_NC, labels_N):
    return (scores_NC.argmax(1) == labels_N).mean()


def test_permutation_importance_ranks_the_informative_feature_first():
    inputs = RNG.normal(size=(200, 6)).astype(np.float32)
    labels = (inputs[:, 4] > 0).astype(int)

    def score(inputs_BD):
        return jnp.stack([0.05 * inputs_BD[:, 0], inputs_BD[:, 4]], 1)

    found = attributions.permutation_importance(score, inputs, labels, accuracy)
    assert found.shape == (6, 10)
    assert found.mean(1).argmax() == 4
    assert found[4].min() > 0.3
    assert (found[[1, 2, 3, 5]] == 0).all()
    more = attributions.permutation_importance(score, inputs, labels, accuracy, num_repeats=12)
    np.testing.assert_array_equal(more[:, :10], found)


def test_permutation_importance_equals_that_of_scikit_learn():
    inputs = RNG.normal(size=(300, 4)).astype(np.float32)
    targets = inputs @ np.array([1, -2, 0.5, 0], np.float32)
    model = LinearRegression().fit(inputs, targets)

    def r_squared(scores_N1, targets_N):
        return 1 - ((scores_N1[:, 0] - targets_N) ** 2).sum() / ((targets_N - targets_N.mean()) ** 2).sum()

    found = attributions.permutation_importance(
        lambda x: x @ jnp.asarray(model.coef_)[:, None] + model.intercept_,
        inputs,
        targets,
        r_squared,
        num_repeats=40,
    )
    theirs = of_sklearn(model, inputs, targets, n_repeats=40, random_state=0).importances
    np.testing.assert_allclose(found.mean(1), theirs.mean(1), rtol=0.07)


def test_counterfactual_of_a_linear_score_is_the_nearest():
    """The nearest in the L1 norm changes the one feature with the steepest slope."""

    def score(inputs_BD):
        return jnp.stack([-inputs_BD @ WEIGHTS[:, 0], inputs_BD @ WEIGHTS[:, 0]], 1)

    is_one = score(INPUTS).argmax(1)
    found = attributions.counterfactuals(score, INPUTS, 1 - is_one, num_steps=400)
    assert found.is_found.all()
    np.testing.assert_array_equal(score(found.inputs).argmax(1), 1 - is_one)
    nearest = (2 * abs(INPUTS @ WEIGHTS[:, 0]) + 0.01) / (2 * abs(WEIGHTS[:, 0]).max())
    assert (found.distances >= nearest - 1e-5).all()
    assert (found.distances <= 1.05 * nearest + 0.03).all()
    np.testing.assert_allclose(abs(found.inputs - INPUTS).sum(1), found.distances, rtol=1e-4)


def test_a_counterfactual_stays_in_its_range_or_is_not_found():
    def score(inputs_BD):
        return jnp.stack([inputs_BD[:, 0], jnp.ones(len(inputs_BD))], 1)

    inputs = np.array([[2.0, 0.0]], np.float32)
    found = attributions.counterfactuals(score, inputs, 1, low=1.5, high=3.0)
    assert not found.is_found[0]
    assert found.distances[0] == np.inf
    np.testing.assert_array_equal(found.inputs, inputs)
    assert attributions.counterfactuals(score, inputs, 1, low=0.5, high=3.0).is_found[0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: attributions.counterfactuals(lambda x: x[:, :1], INPUTS, 0), "has one score"),
        (lambda: attributions.counterfactuals(linear, INPUTS, 0, low=2.0, high=1.0), "low less than high"),
        (lambda: attributions.tabular_lime(linear, INPUTS, scale=0.0), "scale must be positive"),
        (lambda: attributions.tabular_lime(linear, INPUTS[None], scale=1.0), "needs rows of a table"),
        (lambda: attributions.lime(linear, INPUTS, background=0.0, kernel_width=0), "kernel_width=0"),
        (
            lambda: attributions.permutation_importance(linear, INPUTS, [0], accuracy),
            "there are 1 labels for 4 inputs",
        ),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()
