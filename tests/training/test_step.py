import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dl import optimizers, task
from dl.metrics import Mean
from dl.models.mlp import MLP
from dl.precision import LossScale
from dl.sharding import batch_sharding, state_shardings
from dl.training.jitted import make_eval_step, make_train_step
from dl.training.step import StepConfig, update_state, with_inputs
from dl.types import Aux

MODEL = MLP(hidden=(8,), num_classes=3)
LOSS_FN = task.classification(MODEL).loss


def make_batch(size=16, seed=0):
    images = jax.random.normal(jax.random.key(seed), (size, 5))
    return {
        "image": images,
        "label": jnp.arange(size) % 3,
        "mask": jnp.ones(size, bool),
        "index": jnp.arange(size),
    }


def config_of(tx, **fields):
    return StepConfig(
        init_fn=lambda key, batch: MODEL.init(key, batch["image"]), loss_fn=LOSS_FN, tx=tx, **fields
    )


def make_state(tx, seed=0, **fields):
    return config_of(tx, **fields).init(make_batch(), seed)


def update(state, batch, tx, **fields):
    return update_state(config_of(tx, **fields), state, batch)


def compiled_step(tx, mesh):
    state = make_state(tx)
    shardings = state_shardings(state, mesh)
    return make_train_step(config_of(tx), mesh, shardings), jax.device_put(state, shardings)


def put(batch, mesh):
    return jax.device_put(batch, batch_sharding(mesh))


@pytest.mark.slow
def test_eight_devices_compute_what_one_computes(mesh1, mesh8):
    tx = optimizers.adamw(1e-2)
    ends = []
    for mesh in (mesh1, mesh8):
        step, state = compiled_step(tx, mesh)
        for seed in range(5):
            state, metrics = step(state, put(make_batch(seed=seed), mesh))
        ends.append(jax.device_get((state.params, metrics)))
    chex.assert_trees_all_close(*ends, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("tx", [optimizers.sgd(0.1, 0.9), optimizers.adam(1e-2)], ids=["sgd", "adam"])
def test_the_step_equals_a_reference_with_pmap_and_pmean(mesh8, tx):
    """Data parallelism as it was written before jit could shard: replicate, pmap, average."""

    @functools.partial(jax.pmap, axis_name="devices")
    def reference_step(params, opt_state, batch):
        gradient = jax.grad(lambda p: LOSS_FN(p, {}, batch, None)[0].compute())(params)
        gradient = jax.lax.pmean(gradient, "devices")
        updates, opt_state = tx.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    step, state = compiled_step(tx, mesh8)
    copies = jax.device_get((state.params, state.opt_state))
    copies = jax.tree.map(lambda x: np.stack([x] * 8), copies)
    for seed in range(3):
        batch = make_batch(seed=seed)
        split = jax.tree.map(lambda x: np.reshape(x, (8, -1, *x.shape[1:])), batch)
        copies = reference_step(*copies, split)
        state, _ = step(state, put(batch, mesh8))
    first_copy = jax.tree.map(lambda x: x[0], copies[0])
    chex.assert_trees_all_close(jax.device_get(state.params), jax.device_get(first_copy), atol=1e-6)


@pytest.mark.slow
def test_padding_changes_nothing(mesh1):
    tx = optimizers.sgd(0.1)
    state = make_state(tx)
    batch = make_batch(12)
    padded = jax.tree.map(lambda x: jnp.concatenate([x, x[:4]]), batch)
    padded["mask"] = jnp.arange(16) < 12
    ends = [update(state, b, tx) for b in (batch, padded)]
    chex.assert_trees_all_close(ends[0][0].params, ends[1][0].params, atol=1e-6)
    assert ends[1][1]["accuracy"].count == 12


@pytest.mark.slow
def test_the_step_reports_rate_and_gradient_norm(mesh1):
    tx = optimizers.sgd(optimizers.linear(0.5, 10))
    state = make_state(tx)
    gradient = jax.grad(lambda p: LOSS_FN(p, {}, make_batch(), None)[0].compute())(state.params)
    _, metrics = update(state, make_batch(), tx)
    assert metrics["learning_rate"].compute() == pytest.approx(0.5)
    assert metrics["gradient_norm"].compute() == pytest.approx(float(optax.tree.norm(gradient)))


@pytest.mark.slow
def test_runs_trained_side_by_side_equal_solo_runs():
    tx = optimizers.adam(1e-2)
    step = jax.jit(lambda state, batch: update(state, batch, tx)[0])
    members = jax.vmap(lambda seed: make_state(tx, seed))(jnp.arange(3))
    batches = [make_batch(seed=s) for s in range(3)]
    for batch in batches:
        members = jax.vmap(step, (0, None))(members, batch)
    solo = make_state(tx, 2)
    for batch in batches:
        solo = step(solo, batch)
    third = jax.tree.map(lambda x: x[2], members.params)
    chex.assert_trees_all_close(third, solo.params, atol=1e-5)


@pytest.mark.slow
def test_an_overflow_skips_the_step_and_halves_the_scale():
    tx = optimizers.adam(1e-2)
    state = make_state(tx, loss_scale=LossScale.create(2.0**10, growth_interval=2))
    good, bad = make_batch(), make_batch()
    bad["image"] = bad["image"].at[0, 0].set(jnp.inf)
    skipped, _ = update(state, bad, tx)
    chex.assert_trees_all_equal(skipped.params, state.params)
    chex.assert_trees_all_equal(skipped.opt_state, state.opt_state)
    assert (int(skipped.step), float(skipped.loss_scale.scale)) == (1, 2.0**9)
    for _ in range(2):
        state, _ = update(state, good, tx)
    assert float(state.loss_scale.scale) == 2.0**11


@pytest.mark.slow
def test_the_loss_scale_cancels():
    tx = optimizers.sgd(0.1)
    plain, _ = update(make_state(tx), make_batch(), tx)
    scaled, _ = update(make_state(tx, loss_scale=LossScale.create()), make_batch(), tx)
    chex.assert_trees_all_close(plain.params, scaled.params, atol=1e-6)


def test_the_moving_average_is_what_is_evaluated(mesh1):
    tx = optimizers.sgd(0.5)
    state = make_state(tx, ema_decay=0.9)
    expected = state.params
    for step in range(3):
        state, _ = update(state, make_batch(), tx, ema_decay=0.9)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = jax.tree.map(lambda e, p, d=decay: d * e + (1 - d) * p, expected, state.params)
    chex.assert_trees_all_close(state.ema, expected, atol=1e-6)
    eval_step = make_eval_step(config_of(tx), mesh1, state_shardings(state.eval_variables, mesh1))
    by_hand, _ = LOSS_FN(expected, {}, make_batch(), None)
    loss = eval_step(state.eval_variables, make_batch())["loss"].compute()
    assert loss == pytest.approx(float(by_hand.compute()), 1e-5)


@pytest.mark.slow
def test_the_average_of_a_schedule_free_optimizer_is_what_is_evaluated(mesh1):
    tx = optimizers.schedule_free_adamw(0.1, b1=0.9, weight_decay=0.0)
    state = make_state(tx)
    start = state.params
    iterates = []  # z, of which x is the mean at a constant rate, and y = 0.1 z + 0.9 x
    for seed in range(3):
        state, _ = update(state, make_batch(seed=seed), tx)
        iterates.append(state.opt_state.z)
    mean = jax.tree.map(lambda *z: sum(z) / 3, *iterates)
    chex.assert_trees_all_close(state.eval_params, mean, atol=1e-5)
    mixture = jax.tree.map(lambda z, x: 0.1 * z + 0.9 * x, iterates[-1], mean)
    chex.assert_trees_all_close(state.params, mixture, atol=1e-5)
    assert any(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.abs(a - b).max() > 0.1, start, mean)))
    eval_step = make_eval_step(config_of(tx), mesh1, state_shardings(state.eval_variables, mesh1))
    by_hand, _ = LOSS_FN(mean, {}, make_batch(), None)
    loss = eval_step(state.eval_variables, make_batch())["loss"].compute()
    assert loss == pytest.approx(float(by_hand.compute()), 1e-4)


@pytest.mark.parametrize("loss_scale", [None, LossScale.create(2.0**10)], ids=["plain", "scaled"])
def test_an_optimizer_that_follows_the_loss_is_given_it(loss_scale):
    given = []

    def watch(updates, state, params=None, *, value, **extra):
        given.append(value)
        return updates, state

    tx = optax.chain(
        optax.GradientTransformationExtraArgs(lambda params: (), watch),
        optimizers.sgd(optimizers.plateau(0.1, factor=0.5, patience=1)),
    )
    state = make_state(tx, loss_scale=loss_scale)
    _, metrics = update(state, make_batch(), tx)
    assert given[0] == pytest.approx(float(metrics["loss"].compute()))
    assert metrics["learning_rate"].compute() == pytest.approx(0.1)


@pytest.mark.slow
def test_augmentation_is_keyed_by_example_and_absent_from_evaluation():
    seen = []

    def loss_fn(params, model_state, batch, key):
        seen.append(batch["image"])
        return Mean.of(jnp.zeros(1)), Aux({}, {})

    def jitter(key, example):
        return {**example, "image": example["image"] + jax.random.normal(key, (5,))}

    wrapped = with_inputs(loss_fn, None, jitter)
    batch = make_batch(6)
    order = jnp.array([3, 1, 5, 0, 2, 4])
    key = jax.random.key(7)
    wrapped({}, {}, batch, key)
    wrapped({}, {}, jax.tree.map(lambda x: x[order], batch), key)
    wrapped({}, {}, batch, None)
    chex.assert_trees_all_equal(seen[0][order], seen[1])
    chex.assert_trees_all_equal(seen[2], batch["image"])
    assert len(np.unique(np.asarray(seen[0] - batch["image"]))) == 30


@pytest.mark.slow
def test_jit_and_no_jit_agree():
    tx = optimizers.adam(1e-2)
    state = make_state(tx)
    plain, _ = update(state, make_batch(), tx)
    jitted, _ = jax.jit(lambda s, b: update(s, b, tx))(state, make_batch())
    chex.assert_trees_all_close(plain.params, jitted.params, atol=1e-6)
