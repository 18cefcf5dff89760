"""Shapley values against brute force over orders and subsets, their axioms, and linear models."""

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest

from dl.analysis import attributions
from dl.errors import UserError

ESTIMATORS = {
    "exact": attributions.exact_shapley,
    "kernel": attributions.kernel_shap,
    "permutation": attributions.permutation_shap,
}
exactly = pytest.mark.parametrize("explain", [attributions.exact_shapley, attributions.kernel_shap])
always = pytest.mark.parametrize("explain", ESTIMATORS.values(), ids=ESTIMATORS)


def game(num_features, seed=0):
    """Returns a random game: the value of each coalition, and a score that reads it from the input's bits."""
    values = np.random.default_rng(seed).integers(-64, 64, 2**num_features).astype(np.float32) / 64
    powers = 2.0 ** np.arange(num_features, dtype=np.float32)

    def score(inputs_BM):
        return jnp.asarray(values)[(inputs_BM @ powers).astype(int)][:, None]

    return values, score


def by_subsets(values, num_features):
    """Shapley 1953, eq. 13, over all subsets."""
    found = np.zeros(num_features)
    for feature in range(num_features):
        others = [other for other in range(num_features) if other != feature]
        for size in range(num_features):
            weight = (
                math.factorial(size) * math.factorial(num_features - size - 1) / math.factorial(num_features)
            )
            for subset in itertools.combinations(others, size):
                row = sum(1 << other for other in subset)
                found[feature] += weight * (float(values[row | 1 << feature]) - float(values[row]))
    return found


def by_orders(values, num_features):
    """The mean gain over all orders, which is what the formula over subsets stands for."""
    found = np.zeros(num_features)
    for order in itertools.permutations(range(num_features)):
        row = 0
        for feature in order:
            found[feature] += float(values[row | 1 << feature]) - float(values[row])
            row |= 1 << feature
    return found / math.factorial(num_features)


def whole(num_features):
    return np.ones((1, num_features), np.float32)


@exactly
@pytest.mark.parametrize("num_features", [1, 2, 3, 7, 10])
def test_equal_brute_force(explain, num_features):
    values, score = game(num_features)
    expected = by_subsets(values, num_features)
    if num_features <= 7:
        np.testing.assert_allclose(by_orders(values, num_features), expected, atol=1e-9)
    found = explain(score, whole(num_features), background=0.0, batch_size=128)
    np.testing.assert_allclose(found[0], expected, atol=1e-6)


def test_samples_come_near_to_brute_force():
    values, score = game(10)
    expected = by_subsets(values, 10)
    for explain, more in (
        (attributions.permutation_shap, {"num_permutations": 200}),
        (attributions.kernel_shap, {"num_coalitions": 600}),
    ):
        found = explain(score, whole(10), background=0.0, batch_size=256, **more)
        assert abs(found[0] - expected).max() < 0.2
        other = explain(score, whole(10), background=0.0, batch_size=256, seed=1, **more)
        assert (found != other).any()


@always
def test_efficiency(explain):
    """The values sum to the score of the input minus the mean score of the background."""
    weights = np.random.default_rng(0).normal(size=(14, 5)).astype(np.float32)

    def score(inputs_BM):
        return jnp.tanh(inputs_BM @ weights) * inputs_BM[:, :1]

    rng = np.random.default_rng(1)
    num_features = 5 if explain is attributions.exact_shapley else 14
    segments = np.arange(14) % num_features
    inputs, background = rng.normal(size=(3, 14)).astype("f"), rng.normal(size=(4, 14)).astype("f")
    more = {"num_coalitions": 100} if explain is attributions.kernel_shap else {}
    found = explain(score, inputs, 2, background=background, segments=segments, **more)
    expected = np.asarray(score(inputs)[:, 2] - score(background)[:, 2].mean())
    assert found.shape == (3, num_features)
    np.testing.assert_allclose(found.sum(1), expected, atol=1e-5)


@exactly
def test_symmetry_and_dummy(explain):
    """Features 0 and 1 do the same, feature 3 does nothing."""

    def score(inputs_BM):
        return (inputs_BM[:, 0] * inputs_BM[:, 1] + inputs_BM[:, 2] * (inputs_BM[:, 0] + inputs_BM[:, 1]))[
            :, None
        ]

    [found] = explain(score, np.array([[2, 2, 3, 5]], np.float32), background=0.0)
    assert abs(found[0] - found[1]) < 1e-6
    assert abs(found[3]) < 1e-6
    np.testing.assert_allclose(found[:3], [5, 5, 6], atol=1e-5)  # each product is shared by its two factors


@exactly
def test_additivity(explain):
    (_, first), (_, second) = game(4, 1), game(4, 2)
    one, two, both = (
        explain(score, whole(4), background=0.0)
        for score in (first, second, lambda inputs: first(inputs) + second(inputs))
    )
    np.testing.assert_allclose(one + two, both, atol=1e-6)


@always
def test_of_a_linear_score(explain):
    """φᵢ = wᵢ (xᵢ − E xᵢ) (Lundberg & Lee 2017, corollary 1)."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(6, 3)).astype(np.float32)
    inputs, background = rng.normal(size=(4, 6)).astype("f"), rng.normal(size=(5, 6)).astype("f")
    targets = np.array([0, 1, 2, 1])
    found = explain(lambda x: x @ weights, inputs, targets, background=background)
    np.testing.assert_allclose(found, (inputs - background.mean(0)) * weights[:, targets].T, atol=1e-5)


def test_tokens_and_superpixels_are_features():
    """Whole numbers are replaced by a token, and all channels of a superpixel at once."""

    def score_of_tokens(tokens_BT):
        return (tokens_BT == 7).sum(1, keepdims=True).astype(jnp.float32)

    found = attributions.kernel_shap(score_of_tokens, np.array([[7, 3, 7, 7]]), background=0)
    np.testing.assert_allclose(found, [[1, 0, 1, 1]], atol=1e-6)

    images = np.random.default_rng(0).normal(size=(2, 4, 6, 3)).astype(np.float32)
    segments = attributions.grid_superpixels(4, 6, 2, 3)
    assert segments.tolist() == [[0, 0, 1, 1, 2, 2]] * 2 + [[3, 3, 4, 4, 5, 5]] * 2
    found = attributions.exact_shapley(
        lambda x: x.sum((1, 2, 3))[:, None], images, background=0.0, segments=segments
    )
    expected = images.reshape(2, 2, 2, 3, 2, 3).sum((2, 4, 5)).reshape(2, 6)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: attributions.kernel_shap(lambda x: x[:, :1], whole(9), background=0, num_coalitions=8),
            "num_coalitions=8 is too few for 9 features",
        ),
        (lambda: attributions.exact_shapley(lambda x: x[:, :1], whole(13), background=0), "at most 12"),
        (
            lambda: attributions.kernel_shap(lambda x: x[:, :1], whole(3), background=0, num_coalitions=0),
            "=0",
        ),
        (
            lambda: attributions.exact_shapley(
                lambda x: x[:, :1], whole(3), background=0, segments=[0, 0, 2]
            ),
            "number them from 0 without a gap",
        ),
        (
            lambda: attributions.exact_shapley(lambda x: x[:, :1], whole(3), background=0, segments=[0, 1]),
            "over the first axes of an example",
        ),
        (lambda: attributions.grid_superpixels(4, 4, 5, 2), "rows=5 is more than the 4 pixels"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()
