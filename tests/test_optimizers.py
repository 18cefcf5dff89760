"""Optimizers against references written here in NumPy; schedules against their formulas."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dl import optimizers


def trajectory(tx, gradients, start=1.0):
    """Returns the parameter after each gradient."""
    with jax.enable_x64(True):
        params = {"kernel": jnp.full((1, 1), start, jnp.float64)}
        state = tx.init(params)
        places = []
        for gradient in gradients:
            updates, state = tx.update({"kernel": jnp.full((1, 1), gradient)}, state, params)
            params = optax.apply_updates(params, updates)
            places.append(float(params["kernel"][0, 0]))
    return np.array(places)


GRADIENTS = np.random.default_rng(0).normal(size=10)


def reference_sgd(gradients, rate, momentum=0.0, nesterov=False, decay=0.0):
    place, velocity, places = 1.0, 0.0, []
    for g in gradients:
        g = g + decay * place
        velocity = momentum * velocity + g
        place -= rate * (g + momentum * velocity if nesterov else velocity)
        places.append(place)
    return np.array(places)


def reference_adam(gradients, rate, decay=0.0, b1=0.9, b2=0.999, eps=1e-8):
    place, m, v, places = 1.0, 0.0, 0.0, []
    for t, g in enumerate(gradients, 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        direction = (m / (1 - b1**t)) / (math.sqrt(v / (1 - b2**t)) + eps)
        place -= rate * (direction + decay * place)
        places.append(place)
    return np.array(places)


@pytest.mark.parametrize(
    ("tx", "expected"),
    [
        (optimizers.sgd(0.1), reference_sgd(GRADIENTS, 0.1)),
        (optimizers.sgd(0.1, 0.9), reference_sgd(GRADIENTS, 0.1, 0.9)),
        (optimizers.sgd(0.1, 0.9, nesterov=True), reference_sgd(GRADIENTS, 0.1, 0.9, True)),
        (optimizers.sgd(0.1, weight_decay=0.2), reference_sgd(GRADIENTS, 0.1, decay=0.2)),
        (optimizers.adam(0.1), reference_adam(GRADIENTS, 0.1)),
        (optimizers.adamw(0.1, weight_decay=0.2), reference_adam(GRADIENTS, 0.1, 0.2)),
    ],
    ids=["sgd", "momentum", "nesterov", "sgd_l2", "adam", "adamw"],
)
def test_ten_steps_equal_the_reference(tx, expected):
    np.testing.assert_allclose(trajectory(tx, GRADIENTS), expected, rtol=0, atol=1e-7)


def test_adam_corrects_its_bias():
    """For g = (1, 1, 1, −1, −1) the steps in units of the rate are 1, 1, 1, 0.4184, 0.0721."""
    places = trajectory(optimizers.adam(1.0, eps=0.0), [1, 1, 1, -1, -1], start=0.0)
    steps = -np.diff(places, prepend=0.0)
    np.testing.assert_allclose(steps, [1, 1, 1, 0.4184, 0.0721], atol=5e-5)


def test_gradient_descent_on_a_parabola():
    tx, params = optimizers.sgd(0.1), jnp.ones((1, 1))
    state = tx.init(params)
    for _ in range(10):
        updates, state = tx.update(jax.grad(lambda p: (p**2).sum())(params), state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params, [[0.8**10]], rtol=1e-6)


def test_adamw_is_not_adam_with_l2():
    decoupled = trajectory(optimizers.adamw(0.1, weight_decay=0.2), GRADIENTS[:5])
    coupled = trajectory(optax.chain(optax.add_decayed_weights(0.2), optimizers.adam(0.1)), GRADIENTS[:5])
    assert abs(decoupled[-1] - coupled[-1]) > 1e-3


def test_a_parameter_without_gradient_decays_by_exactly_one_minus_rate_times_decay():
    places = trajectory(optimizers.adamw(0.1, weight_decay=0.5), np.zeros(4))
    np.testing.assert_allclose(places, 0.95 ** np.arange(1, 5), rtol=1e-6)


def test_decay_spares_biases_and_scales():
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2), "scale": jnp.ones(2)}
    tx = optimizers.adamw(0.1, weight_decay=0.5)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    chex.assert_trees_all_close(
        updates,
        {"kernel": jnp.full((2, 2), -0.05), "bias": jnp.zeros(2), "scale": jnp.zeros(2)},
    )


def test_clipping_scales_the_whole_gradient_to_its_norm():
    tx = optimizers.sgd(1.0, clip_norm=1.0)
    gradient = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    updates, _ = tx.update(gradient, tx.init(gradient), gradient)
    chex.assert_trees_all_close(updates, {"a": jnp.array([-0.6]), "b": jnp.array([-0.8])})


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (optimizers.constant(2.0), {0: 2, 5: 2, 99: 2}),
        (optimizers.constant(2.0, warmup_steps=4), {0: 0.5, 1: 1, 2: 1.5, 3: 2, 4: 2, 50: 2}),
        (optimizers.linear(1.0, 10), {0: 1, 5: 0.5, 10: 0, 12: 0}),
        (
            optimizers.linear(1.0, 12, warmup_steps=2, end=0.5),
            {0: 0.5, 1: 1, 2: 1, 7: 0.75, 12: 0.5},
        ),
        (optimizers.cosine(1.0, 10), {0: 1, 5: 0.5, 10: 0, 2: (1 + math.cos(math.pi / 5)) / 2}),
        (optimizers.cosine(2.0, 12, warmup_steps=2, end=1.0), {0: 1, 1: 2, 2: 2, 7: 1.5, 12: 1}),
        (optimizers.step(1.0, [3, 6]), {0: 1, 2: 1, 3: 0.1, 5: 0.1, 6: 0.01}),
        (optimizers.step(1.0, [4], factor=0.5, warmup_steps=2), {0: 0.5, 1: 1, 3: 1, 4: 0.5}),
    ],
)
def test_schedules(schedule, expected):
    actual = {step: float(schedule(step)) for step in expected}
    assert actual == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("rate", [0.1, optimizers.linear(0.1, 10)], ids=["number", "schedule"])
def test_the_state_tells_the_rate_that_was_applied(rate):
    tx, params = optimizers.adamw(rate), {"kernel": jnp.ones((2, 2))}
    _, state = tx.update(params, tx.init(params), params)
    found = optax.tree_utils.tree_get_all_with_path(state, "learning_rate")
    assert float(found[0][1]) == pytest.approx(0.1)
