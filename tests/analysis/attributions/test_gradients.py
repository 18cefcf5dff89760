"""Explanations by gradients against closed forms; one program for any number of examples; the same bits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from dl.analysis import attributions
from dl.analysis.attributions.scoring import batch_size_of
from dl.errors import UserError
from dl.models.cnn import CNN

N, D, C = 5, 6, 3
RNG = np.random.default_rng(0)
WEIGHTS_DC = RNG.normal(size=(D, C)).astype(np.float32)
INPUTS_ND = RNG.normal(size=(N, D)).astype(np.float32)
TARGETS_N = np.array([0, 1, 2, 1, 0])


def linear(inputs_BD):
    return inputs_BD @ WEIGHTS_DC + jnp.arange(3.0)[None]


def curved(inputs_BD):
    """Scores whose second derivatives are not zero."""
    return jnp.tanh(inputs_BD @ WEIGHTS_DC) * (inputs_BD**2).sum(1, keepdims=True)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).normal(size=(7, 6, 6, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def cnn(images):
    model = CNN((3,), (6,), C, pool=True)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    # Biases, so that the score of a black image is not zero.
    variables = jax.tree.map(lambda leaf: leaf + 0.1, variables)
    return Partial(model.apply, variables)


def test_of_a_linear_score_are_its_weights():
    expected = WEIGHTS_DC[:, TARGETS_N].T
    for explain in (attributions.gradient, functools.partial(attributions.smooth_grad, num_samples=20)):
        np.testing.assert_allclose(explain(linear, INPUTS_ND, TARGETS_N), expected, rtol=1e-5)
    product = attributions.gradient_times_input(linear, INPUTS_ND, TARGETS_N)
    np.testing.assert_allclose(product, expected * INPUTS_ND, rtol=1e-5)


def test_the_default_target_has_the_highest_score():
    targets = np.asarray(curved(INPUTS_ND)).argmax(1)
    assert len(set(targets)) > 1
    found, expected = (attributions.gradient(curved, INPUTS_ND, chosen) for chosen in (None, targets))
    np.testing.assert_array_equal(found, expected)


def test_smooth_grad_is_the_mean_of_gradients_of_noisy_copies():
    """The gradient of x³ is 3x², whose mean tells the variance of the noise."""

    def cubes(inputs_BD):
        return (inputs_BD**3).sum(1, keepdims=True)

    found = attributions.smooth_grad(cubes, INPUTS_ND, 0, noise=0.5, num_samples=4000, batch_size=500)
    deviation_N1 = 0.5 * np.ptp(INPUTS_ND, 1)[:, None]
    expected = 3 * (INPUTS_ND**2 + deviation_N1**2)  # E 3 (x + σ e)² = 3 x² + 3 σ²
    np.testing.assert_allclose(found, expected, rtol=0.15)
    other = attributions.smooth_grad(cubes, INPUTS_ND, 0, noise=0.5, num_samples=8, seed=1)
    assert (other != attributions.smooth_grad(cubes, INPUTS_ND, 0, noise=0.5, num_samples=8)).all()


def test_guided_backpropagation_by_hand():
    first, second = np.array([[1.0, -1.0], [2.0, 1.0]], np.float32), np.array([[1.0], [-3.0]], np.float32)

    def score(inputs_BD):
        return jax.nn.relu(inputs_BD @ first) @ second

    x = np.array([[2.0, 1.0], [-1.0, 2.0]], np.float32)  # hidden units: (4, -1) and (3, 3)
    np.testing.assert_allclose(attributions.gradient(score, x), [[1, 2], [4, -1]])
    # The gradient -3 of the second hidden unit does not pass its ReLU.
    np.testing.assert_allclose(attributions.guided_backpropagation(score, x), [[1, 2], [1, 2]])


def test_guided_backpropagation_refuses_a_relu_in_a_loop():
    def score(inputs_BD):
        return jax.lax.fori_loop(0, 2, lambda _, x: jax.nn.relu(x), inputs_BD)

    with pytest.raises(UserError, match="does not reach the ReLU inside of"):
        attributions.guided_backpropagation(score, INPUTS_ND)
    with pytest.raises(UserError, match="the score has no ReLU"):
        attributions.guided_backpropagation(curved, INPUTS_ND)


@pytest.mark.parametrize("tolerance", [0.05, 1e-3])
def test_integrated_gradients_are_complete_within_the_tolerance(cnn, images, tolerance):
    baseline = np.full(images.shape[1:], 0.3, np.float32)
    found = attributions.integrated_gradients(cnn, images, 1, baseline=baseline, tolerance=tolerance)
    difference = np.asarray(cnn(images))[:, 1] - np.asarray(cnn(baseline[None]))[:, 1]
    sums = found.attributions.sum((1, 2, 3), dtype=np.float64)
    scale = np.maximum(abs(difference), 0.1 * abs(found.attributions).sum((1, 2, 3)))
    assert (abs(sums - difference) <= tolerance * scale + 1e-5).all()
    assert (found.errors <= tolerance).all()


def test_integrated_gradients_of_a_polynomial():
    """For x₀ x₁² from zero, the integral of t² x₁² x₀ and of 2 t² x₀ x₁ x₁ is ⅓ and ⅔ of the score."""

    def score(inputs_BD):
        return (inputs_BD[:, 0] * inputs_BD[:, 1] ** 2)[:, None]

    x = np.array([[2.0, 3.0], [1.0, -2.0]], np.float32)
    found = attributions.integrated_gradients(score, x, tolerance=1e-4)
    np.testing.assert_allclose(found.attributions, [[6, 12], [4 / 3, 8 / 3]], rtol=1e-3)
    assert (
        attributions.integrated_gradients(score, x, tolerance=0.1).num_intervals < found.num_intervals
    ).all()


def test_a_tolerance_that_is_not_reached_is_refused():
    def steep(inputs_BD):
        return jax.nn.sigmoid(1e4 * (inputs_BD.sum(1, keepdims=True) - 0.3))

    with pytest.raises(UserError, match="completeness error of 1 of 1 examples is above tolerance=0.0001"):
        attributions.integrated_gradients(
            steep, np.ones((1, 1), np.float32), tolerance=1e-4, max_intervals=64
        )


def test_a_score_that_is_not_a_number_is_not_complete():
    with pytest.raises(UserError, match="completeness error of 5 of 5 examples"):
        attributions.integrated_gradients(lambda x: jnp.log(-(x**2)), INPUTS_ND[:, :1], 0, max_intervals=32)


def test_expected_gradients_of_a_linear_score():
    """φᵢ = wᵢ (xᵢ − E xᵢ), exactly, because every baseline is drawn equally often."""
    background = np.random.default_rng(2).normal(size=(7, D)).astype(np.float32)
    found = attributions.expected_gradients(
        linear, INPUTS_ND, TARGETS_N, background=background, num_samples=70
    )
    expected = WEIGHTS_DC[:, TARGETS_N].T * (INPUTS_ND - background.mean(0))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    # Of a background that is larger than the sample, a random part is used, not the first examples.
    ordered = np.repeat(np.arange(100, dtype=np.float32)[:, None], D, 1)
    few = attributions.expected_gradients(linear, INPUTS_ND, TARGETS_N, background=ordered, num_samples=40)
    baseline = INPUTS_ND - few / WEIGHTS_DC[:, TARGETS_N].T
    np.testing.assert_allclose(baseline, 49.5, atol=12)


def test_occlusion_of_a_linear_score():
    """Covering a window takes away the terms of the window."""
    weights = np.random.default_rng(3).normal(size=(4, 6)).astype(np.float32)
    images = np.random.default_rng(4).normal(size=(2, 4, 6, 1)).astype(np.float32)

    def score(images_BHWC):
        return (images_BHWC[..., 0] * weights[None]).sum((1, 2))[:, None]

    terms = images[..., 0] * weights
    found = attributions.occlusion(score, images, window=(2, 3))
    expected = terms.reshape(2, 2, 2, 2, 3).sum((2, 4)).repeat(2, 1).repeat(3, 2)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    single = attributions.occlusion(score, images, window=(1, 1), background=images.mean(0))
    np.testing.assert_allclose(single, (images - images.mean(0))[..., 0] * weights, atol=1e-5)
    overlapping = attributions.occlusion(score, images, window=(2, 2), stride=(1, 1))
    corner = terms[:, :2, :2].sum((1, 2))  # one window covers the corner
    np.testing.assert_allclose(overlapping[:, 0, 0], corner, atol=1e-5)


EXPLANATIONS = {
    "gradient": attributions.gradient,
    "smooth_grad": lambda *args: attributions.smooth_grad(*args, num_samples=20),
    "guided_backpropagation": attributions.guided_backpropagation,
    "integrated_gradients": lambda *args: attributions.integrated_gradients(*args).attributions,
    "expected_gradients": lambda *args: attributions.expected_gradients(
        *args, background=0.0, num_samples=20
    ),
    "relevance": attributions.relevance,
    "occlusion": lambda *args: attributions.occlusion(*args, window=(3, 3)),
    "counterfactuals": lambda *args: attributions.counterfactuals(*args, 0, num_steps=5).inputs,
    "kernel_shap": lambda *args: attributions.kernel_shap(
        *args, background=0.0, segments=attributions.grid_superpixels(6, 6, 2, 2)
    ),
    "lime": lambda *args: (
        attributions.lime(
            *args, background=0.0, segments=attributions.grid_superpixels(6, 6, 2, 2), num_samples=20
        ).weights
    ),
}


@pytest.mark.parametrize("name", EXPLANATIONS)
def test_an_example_gets_the_same_bits_alone_and_among_others_by_one_program(cnn, images, name):
    explain, num_traces = EXPLANATIONS[name], 0

    def counted(inputs):
        nonlocal num_traces
        num_traces += 1
        return cnn(inputs)

    score = Partial(counted)
    alone = np.concatenate([explain(score, images[:1])])
    once = num_traces
    assert once <= 8  # each compiled program traces it a few times
    together = explain(score, np.concatenate([images] * 4))
    assert num_traces == once
    for row, image in enumerate(images):
        alone = explain(score, image[None])
        for copy in range(row, len(together), len(images)):
            np.testing.assert_array_equal(together[copy], alone[0])
    np.testing.assert_array_equal(explain(score, images), together[: len(images)])
    assert num_traces == once


def test_a_score_with_other_variables_is_not_compiled_again(cnn, images):
    num_traces = 0

    def apply(variables, inputs):
        nonlocal num_traces
        num_traces += 1
        return cnn.func(variables, inputs)

    first = attributions.gradient(Partial(apply, *cnn.args), images)
    once = num_traces
    other = jax.tree.map(lambda leaf: 2 * leaf, cnn.args)
    assert (attributions.gradient(Partial(apply, *other), images) != first).any()
    assert num_traces == once


def test_the_activations_of_a_batch_fit_into_memory():
    """An example of this score makes 100 MB; with 16 examples and their gradients it would be 3 GB."""

    def score(inputs_BD):
        wide = jnp.broadcast_to(inputs_BD[:, :, None], (*inputs_BD.shape, 12_500_000))
        return jnp.tanh(wide).sum((1, 2))[:, None]

    # It is only traced, because its gradients would take minutes.
    assert batch_size_of(Partial(score), np.zeros((100, 1), np.float32), None) == 2
    assert batch_size_of(Partial(linear), INPUTS_ND, None) == 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((linear, INPUTS_ND.astype(int)), "inputs has the dtype int64, which has no gradient"),
        ((linear, INPUTS_ND[:0]), "inputs is empty"),
        ((linear, INPUTS_ND, 3), "targets has values from 3 to 3; the model has 3 scores"),
        ((linear, INPUTS_ND, [0, 1]), "one for each of the 5 inputs"),
        ((linear, INPUTS_ND, 0.5), "whole number"),
        ((lambda x: linear(x).sum(), INPUTS_ND), "it must have the shape"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        attributions.gradient(*arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: attributions.gradient(linear, INPUTS_ND, batch_size=0), "batch_size=0"),
        (lambda: attributions.smooth_grad(linear, INPUTS_ND, noise=-1), "noise=-1"),
        (lambda: attributions.integrated_gradients(linear, INPUTS_ND, tolerance=0), "tolerance=0"),
        (
            lambda: attributions.integrated_gradients(linear, INPUTS_ND, baseline=np.zeros((2, D))),
            "baseline has 2 examples",
        ),
        (lambda: attributions.expected_gradients(linear, INPUTS_ND, background=np.zeros(5)), "background"),
        (lambda: attributions.occlusion(linear, INPUTS_ND, window=(7,)), "do not fit"),
        (lambda: attributions.occlusion(linear, INPUTS_ND, window=(2,), stride=(3,)), "do not fit"),
    ],
)
def test_wrong_options_are_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()
