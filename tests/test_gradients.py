import chex
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from dl import losses, task
from dl.gradients import accumulated_gradient, mean_gradient, sharpness_aware_gradient
from dl.metrics import Mean
from dl.models.mlp import MLP
from dl.types import Aux
from tests.backpropagation import backpropagate, sigmoid_squared_error, softmax_cross_entropy_error


@pytest.fixture(scope="module")
def problem():
    model = MLP(hidden=(4,), num_classes=2)
    batch = {
        "image": jax.random.normal(jax.random.key(0), (12, 3)),
        "label": jnp.arange(12) % 2,
        "mask": jnp.arange(12) < 7,  # the parts hold different numbers of valid examples
        "index": jnp.arange(12),
    }
    params = model.init(jax.random.key(1), batch["image"])["params"]
    return task.classification(model).loss, params, batch


@pytest.mark.parametrize("num_micro_batches", [1, 2, 3, 12])
def test_accumulation_equals_the_full_batch(problem, num_micro_batches):
    loss_fn, params, batch = problem
    full = mean_gradient(loss_fn)(params, {}, batch, None)
    parts = accumulated_gradient(num_micro_batches)(loss_fn)(params, {}, batch, None)
    chex.assert_trees_all_close(parts, full, atol=1e-6)


def test_micro_batches_that_do_not_divide_are_refused(problem):
    loss_fn, params, batch = problem
    with pytest.raises(ValueError, match="num_micro_batches=5 does not divide the batch size 12"):
        accumulated_gradient(5)(loss_fn)(params, {}, batch, None)


def test_a_full_batch_step_is_the_mean_of_single_examples(problem):
    loss_fn, params, batch = problem
    everything = {**batch, "mask": jnp.ones(12, bool)}
    _, full = mean_gradient(loss_fn)(params, {}, everything, None)

    def single(i):
        example = {name: x[i : i + 1] for name, x in everything.items()}
        return mean_gradient(loss_fn)(params, {}, example, None)[1]

    singles = [single(i) for i in range(12)]
    mean = jax.tree.map(lambda *leaves: sum(leaves) / 12, *singles)
    chex.assert_trees_all_close(full, mean, atol=1e-6)


def squared_error_of_sigmoid(logits_BC, batch):
    return losses.half_squared_error(jax.nn.sigmoid(logits_BC), jax.nn.one_hot(batch["label"], 2))


PERCEPTRON = MLP(hidden=(4,), num_classes=2)
HEADS = {
    "softmax": (task.classification(PERCEPTRON).loss, softmax_cross_entropy_error),
    "sigmoid": (task.supervised(PERCEPTRON, squared_error_of_sigmoid).loss, sigmoid_squared_error),
}


@pytest.mark.parametrize("head", HEADS)
def test_the_gradient_equals_backpropagation_by_hand_and_finite_differences(problem, head):
    loss_fn, output_error = HEADS[head]
    _, params, batch = problem
    everything = {**batch, "mask": jnp.ones(12, bool)}
    _, gradient = mean_gradient(loss_fn)(params, {}, everything, None)
    target = np.eye(2)[np.asarray(batch["label"])]
    by_hand = backpropagate(
        jax.tree.map(np.asarray, params), np.asarray(batch["image"]), target, output_error
    )
    chex.assert_trees_all_close(gradient, jax.tree.map(np.float32, by_hand), atol=1e-6)

    flat, unravel = jax.flatten_util.ravel_pytree(params)
    nearby = jnp.stack([flat[None] + sign * 1e-3 * jnp.eye(26) for sign in (1, -1)]).reshape(52, 26)
    values = jax.vmap(lambda point: loss_fn(unravel(point), {}, everything, None)[0].compute())(nearby)
    differences = (values[:26] - values[26:]) / 2e-3
    np.testing.assert_allclose(jax.flatten_util.ravel_pytree(gradient)[0], differences, atol=1e-3)
    assert abs(differences).max() > 0.02


def test_the_sharpness_aware_gradient_of_a_parabola():
    """For L = ½ θᵀ A θ the gradient at θ + ρ g / ‖g‖, g = A θ, is A θ + ρ A g / ‖g‖."""
    random = np.random.default_rng(0)
    root = random.normal(size=(3, 3))
    a, theta = root @ root.T, random.normal(size=3)

    def loss_fn(params, model_state, batch, key):
        flat = jnp.concatenate([params["first"], params["rest"]])
        return Mean.of(0.5 * flat @ jnp.float32(a) @ flat), Aux({"seen": flat}, {})

    params = {"first": jnp.float32(theta[:1]), "rest": jnp.float32(theta[1:])}
    (loss, aux), gradient = sharpness_aware_gradient(0.5)(loss_fn)(params, {}, {}, None)
    g = a @ theta
    expected = g + 0.5 * a @ g / np.linalg.norm(g)
    np.testing.assert_allclose(np.concatenate([gradient["first"], gradient["rest"]]), expected, rtol=1e-5)
    np.testing.assert_allclose(loss, 0.5 * theta @ g, rtol=1e-5)
    np.testing.assert_allclose(aux.model_state["seen"], theta, rtol=1e-6)


def test_at_a_minimum_the_sharpness_aware_gradient_is_zero():
    def loss_fn(params, model_state, batch, key):
        return Mean.of((params**2).sum()), Aux({}, {})

    _, gradient = sharpness_aware_gradient()(loss_fn)(jnp.zeros(2), {}, {}, None)
    np.testing.assert_array_equal(gradient, 0.0)


def test_sharpness_awareness_composes_with_accumulation(problem):
    loss_fn, params, batch = problem
    whole = sharpness_aware_gradient(0.1)(loss_fn)(params, {}, batch, None)
    parts = sharpness_aware_gradient(0.1, accumulated_gradient(3))(loss_fn)(params, {}, batch, None)
    chex.assert_trees_all_close(parts, whole, atol=1e-6)
