"""Measures of explanations where the right explanation is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from dl.analysis import attributions
from dl.analysis import explanation_quality as quality
from dl.errors import UserError
from dl.models.mlp import MLP

RNG = np.random.default_rng(0)
IMAGES = RNG.random((3, 4, 5, 2)).astype(np.float32)
WEIGHTS = RNG.normal(size=(4, 5, 2)).astype(np.float32)


def score(images_BHWC):
    return (images_BHWC * WEIGHTS[None]).sum((1, 2, 3))[:, None]


def test_the_right_map_deletes_and_inserts_fastest():
    right = (IMAGES * WEIGHTS).sum(-1)
    maps = {
        "right": right,
        "random": attributions.random_maps(right.shape),
        "sobel": attributions.sobel_maps(IMAGES),
    }
    deleted = {name: quality.deletion_curves(score, IMAGES, m, background=0.0) for name, m in maps.items()}
    inserted = {name: quality.insertion_curves(score, IMAGES, m, background=0.0) for name, m in maps.items()}
    for name in ("random", "sobel"):
        assert (deleted["right"].areas < deleted[name].areas).all()
        assert (inserted["right"].areas > inserted[name].areas).all()
    # One place a step: the curve falls by the largest terms first.
    terms = -np.sort(-right.reshape(3, -1), 1)
    expected = terms.sum(1, keepdims=True) - np.concatenate([np.zeros((3, 1)), terms.cumsum(1)], 1)
    np.testing.assert_allclose(deleted["right"].scores, expected, atol=1e-5)
    np.testing.assert_allclose(inserted["right"].scores, expected[:, :1] - expected, atol=1e-5)
    np.testing.assert_allclose(
        deleted["right"].areas, (expected[:, 1:] + expected[:, :-1]).mean(1) / 2, atol=1e-5
    )


def test_pointing_hits():
    maps, regions = np.zeros((2, 3, 3)), np.zeros((2, 3, 3), bool)
    maps[:, 1, 2] = 1
    regions[0, 1, 2] = regions[1, 0, 0] = True
    assert quality.pointing_hits(maps, regions).tolist() == [True, False]
    with pytest.raises(UserError, match="they must be equal"):
        quality.pointing_hits(maps, regions[0])


def test_randomised_layers_change_gradients_and_not_edges():
    model, images = MLP((16, 16), 2), RNG.normal(size=(4, 6, 6, 1)).astype(np.float32)
    variables, fresh = (jax.jit(model.init)(jax.random.key(seed), images) for seed in (0, 1))
    layers = ["Dense_2", "Dense_1", "Dense_0"]

    def explain(variables):
        return attributions.gradient(Partial(model.apply, variables), images, 0)

    found = quality.randomisation_correlations(explain, variables, fresh, layers)
    assert list(found) == layers
    assert abs(found["Dense_0"]) < 0.25  # everything is random
    unchanged = quality.randomisation_correlations(explain, variables, variables, layers)
    np.testing.assert_allclose(list(unchanged.values()), 1)
    edges = quality.randomisation_correlations(
        lambda _: attributions.sobel_maps(images), variables, fresh, layers
    )
    np.testing.assert_allclose(list(edges.values()), 1)
    alone = quality.randomisation_correlations(explain, variables, fresh, layers, is_cascading=False)
    assert alone["Dense_2"] == found["Dense_2"]
    assert alone["Dense_0"] != found["Dense_0"]
    with pytest.raises(UserError, match="layers has 'head'; choose among Dense_0"):
        quality.randomisation_correlations(explain, variables, fresh, ["head"])


def test_rank_correlation_is_that_of_sizes():
    one = np.array([[1.0, -2, 3, -4], [1, 1, 1, 1]])
    np.testing.assert_allclose(quality.rank_correlations(one, -one), [1, 0])
    np.testing.assert_allclose(quality.rank_correlations(one, one[:, ::-1]), [-1, 0])


def test_sensitivity_of_a_linear_score_is_zero_and_of_a_square_its_radius():
    def linear(inputs):
        return attributions.gradient(score, inputs, 0)

    assert (quality.max_sensitivity(linear, IMAGES) == 0).all()

    def square(inputs):
        return attributions.gradient(lambda x: (x**2).sum(1, keepdims=True), inputs, 0)

    found = quality.max_sensitivity(square, np.ones((2, 1), np.float32), radius=0.1, num_samples=50)
    assert (found <= 0.1 + 1e-6).all()  # the gradient 2x changes by at most a tenth
    assert (found > 0.08).all()


def test_infidelity_of_gradients():
    """It is zero for a linear score. For x² with gradient 2x, I² is left, whose square has mean 3 σ⁴."""
    gradients = attributions.gradient(score, IMAGES, 0)
    assert (quality.infidelity(score, IMAGES, gradients) < 1e-9).all()
    wrong = quality.infidelity(score, IMAGES, gradients + 1)
    np.testing.assert_allclose(wrong, 0.01 * IMAGES[0].size, rtol=0.5)  # (Σ I)² has the mean σ² × elements
    x = np.ones((1, 1), np.float32)
    found = quality.infidelity(lambda x: jnp.square(x), x, 2 * x, noise=0.5, num_samples=4000)
    np.testing.assert_allclose(found, 3 * 0.5**4, rtol=0.2)


def test_edges_lie_where_the_image_changes():
    image = np.zeros((1, 6, 6, 3))
    image[:, :, 3:] = 1
    edges = attributions.sobel_maps(image)
    assert (edges[0, :, 2:4] > 0).all()
    assert (edges[0][:, [0, 1, 4, 5]] == 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quality.deletion_curves(score, IMAGES, IMAGES[:, 0], background=0), "maps has the shape"),
        (lambda: quality.max_sensitivity(score, IMAGES, radius=0), "radius=0"),
        (lambda: quality.infidelity(score, IMAGES, IMAGES[..., 0]), "attributions has the shape"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()
