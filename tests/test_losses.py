import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from dl import losses
from dl.errors import UserError


def test_cross_entropy_equals_scipy():
    random = np.random.default_rng(0)
    logits_BC, labels_B = random.normal(size=(32, 7)), random.integers(0, 7, 32)
    expected_B = -log_softmax(logits_BC, axis=-1)[np.arange(32), labels_B]
    np.testing.assert_allclose(losses.cross_entropy(logits_BC, labels_B), expected_B, rtol=1e-5)


def test_cross_entropy_of_ten_equal_logits_is_ln_10():
    loss_B = losses.cross_entropy(jnp.zeros((1, 10)), jnp.array([3]))
    np.testing.assert_allclose(loss_B, [2.302585], rtol=1e-6)


def test_cross_entropy_is_exact_at_huge_logits():
    logits_BC = jnp.array([[1e4, -1e4], [-1e4, 1e4]])
    np.testing.assert_array_equal(losses.cross_entropy(logits_BC, jnp.array([0, 0])), [0.0, 2e4])


@pytest.mark.slow
def test_integer_labels_and_one_hot_labels_agree():
    logits_BC = jax.random.normal(jax.random.key(0), (16, 5))
    labels_B = jnp.arange(16) % 5
    one_hot = -(jax.nn.one_hot(labels_B, 5) * jax.nn.log_softmax(logits_BC)).sum(-1)
    chex.assert_trees_all_close(losses.cross_entropy(logits_BC, labels_B), one_hot, rtol=1e-6)


def test_label_smoothing_is_the_mixture_with_the_uniform_distribution():
    random = np.random.default_rng(1)
    logits_BC, labels_B = random.normal(size=(8, 4)), random.integers(0, 4, 8)
    log_p = log_softmax(logits_BC, axis=-1)
    expected_B = -0.9 * log_p[np.arange(8), labels_B] - 0.1 * log_p.mean(-1)
    actual_B = losses.cross_entropy(jnp.float32(logits_BC), labels_B, label_smoothing=0.1)
    np.testing.assert_allclose(actual_B, expected_B, rtol=1e-5)


def test_binary_cross_entropy_has_both_halves():
    logit_of_a_tenth = np.log(0.1 / 0.9)
    loss_B = losses.binary_cross_entropy(jnp.array([[logit_of_a_tenth]]), jnp.array([[0.0]]))
    np.testing.assert_allclose(loss_B, [0.10536], atol=1e-5)


def test_the_squared_errors_equal_numpy():
    random = np.random.default_rng(2)
    output_BD, target_BD = random.normal(size=(2, 8, 3))
    squares = (output_BD - target_BD) ** 2
    np.testing.assert_allclose(losses.half_squared_error(output_BD, target_BD), squares.sum(1) / 2, rtol=1e-5)
    np.testing.assert_allclose(losses.mean_squared_error(output_BD, target_BD), squares.mean(1), rtol=1e-5)


def test_the_gradient_of_half_the_squared_error_is_the_error():
    output_BD, target_BD = jax.random.normal(jax.random.key(0), (2, 8, 3))
    gradient = jax.grad(lambda y: losses.half_squared_error(y, target_BD).sum())(output_BD)
    chex.assert_trees_all_close(gradient, output_BD - target_BD, rtol=1e-6)


@pytest.mark.parametrize("error", [losses.half_squared_error, losses.mean_squared_error])
def test_outputs_are_never_broadcast_against_targets(error):
    with pytest.raises(UserError, match=r"shape \(8, 1\) and targets of shape \(8,\) differ"):
        error(jnp.zeros((8, 1)), jnp.zeros(8))
