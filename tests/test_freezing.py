"""Frozen parameters: neither differentiated nor updated, and their batch norms keep their statistics."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dl import freezing, optimizers, task
from dl.errors import UserError
from dl.gradients import mean_gradient
from dl.training.step import StepConfig, update_state


class Net(nn.Module):
    """A body with batch norm and a head, all told to train."""

    @nn.compact
    def __call__(self, x_BD, train=False):
        x_BD = nn.Dense(4, name="body")(x_BD)
        x_BD = nn.BatchNorm(use_running_average=not train, momentum=0.5, name="body_norm")(x_BD)
        return nn.BatchNorm(use_running_average=not train, name="head_norm")(nn.Dense(3, name="head")(x_BD))


MODEL = Net()
LOSS_FN = task.classification(MODEL, input_name="x").loss
BODY = ["^body"]


def make_batch(size=8):
    random = np.random.default_rng(0)
    return {
        "x": jnp.asarray(random.normal(3.0, 2.0, (size, 5)), jnp.float32),
        "label": jnp.asarray(random.integers(0, 3, size), jnp.int32),
        "index": jnp.arange(size),
        "mask": jnp.ones(size, bool),
    }


def config_of(tx, frozen=BODY, **fields):
    def init_fn(key, batch):
        return MODEL.init(key, batch["x"])

    return StepConfig(init_fn=init_fn, loss_fn=LOSS_FN, tx=tx, frozen=frozen, **fields)


def make_state(tx, **fields):
    return config_of(tx, **fields).init(make_batch(), 0)


def step(state, tx, **fields):
    config = config_of(tx, **fields)
    return jax.jit(lambda s, b: update_state(config, s, b))(state, make_batch())


@pytest.mark.slow
@pytest.mark.parametrize(
    "tx", [optimizers.adamw(0.1), optimizers.muon(1.0), optimizers.schedule_free_adamw(0.1)]
)
def test_what_is_frozen_keeps_its_bits_and_its_statistics_while_the_rest_learns(tx):
    first = state = make_state(tx, ema_decay=0.9)
    # Negative zero is what a harmless looking "plus nothing" would change.
    state = first = state.replace(
        params={**state.params, "body": {**state.params["body"], "bias": jnp.full(4, -0.0)}}
    )
    for _ in range(3):
        state, metrics = step(state, tx, ema_decay=0.9)
    for name in ("body", "body_norm"):
        for tree in (state.params, state.ema, state.eval_params):
            jax.tree.map(
                lambda a, b: np.testing.assert_array_equal(np.asarray(a).view(np.int32), b.view(np.int32)),
                tree[name],
                jax.tree.map(np.asarray, first.params[name]),
            )
    assert not np.signbit(np.abs(state.params["body"]["bias"])).any()
    np.testing.assert_array_equal(
        state.model_state["batch_stats"]["body_norm"]["mean"],
        first.model_state["batch_stats"]["body_norm"]["mean"],
    )
    assert np.abs(state.params["head"]["kernel"] - first.params["head"]["kernel"]).max() > 0.01
    assert np.abs(state.model_state["batch_stats"]["head_norm"]["mean"]).max() > 0
    assert float(metrics["gradient_norm"].compute()) > 0


@pytest.mark.slow
def test_a_frozen_norm_uses_the_statistics_that_it_brought_along():
    tx = optimizers.sgd(0.1)
    state = make_state(tx)
    _, metrics = step(state, tx)

    class Known(Net):
        @nn.compact
        def __call__(self, x_BD, train=False):
            x_BD = nn.Dense(4, name="body")(x_BD)
            x_BD = nn.BatchNorm(use_running_average=True, momentum=0.5, name="body_norm")(x_BD)
            return nn.BatchNorm(use_running_average=not train, name="head_norm")(
                nn.Dense(3, name="head")(x_BD)
            )

    expected, _ = task.classification(Known(), input_name="x").loss(
        state.params, state.model_state, make_batch(), jax.random.key(0)
    )
    assert float(metrics["loss"].compute()) == pytest.approx(float(expected.compute()), 1e-6)
    free, _ = LOSS_FN(state.params, state.model_state, make_batch(), jax.random.key(0))
    assert float(metrics["loss"].compute()) != pytest.approx(float(free.compute()), 1e-2)


@pytest.mark.slow
def test_the_gradient_and_the_optimizer_never_see_what_is_frozen():
    tx = optimizers.adam(0.1)
    state = make_state(tx)
    seen = []

    def spying(loss_fn):
        def gradient(params, *rest):
            seen.append(set(params))
            return mean_gradient(loss_fn)(params, *rest)

        return gradient

    update_state(config_of(tx, grad_fn=spying), state, make_batch())
    assert seen == [{"head", "head_norm"}]
    moments = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)
    trained, frozen = freezing.split(state.params, BODY)
    assert moments == 2 * sum(leaf.size for leaf in jax.tree.leaves(trained))
    assert set(frozen) == {"body", "body_norm"}


@pytest.mark.slow
def test_nothing_frozen_changes_nothing():
    tx = optimizers.sgd(0.1)
    state = make_state(tx, frozen=())
    after, _ = step(state, tx, frozen=())

    def loss(params):
        return LOSS_FN(params, state.model_state, make_batch(), state.rng)[0].compute()

    gradient = jax.grad(loss)
    updates, _ = tx.update(gradient(state.params), tx.init(state.params), state.params)
    by_hand = optax.apply_updates(state.params, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after.params, by_hand)


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["^boddy"], "'\\^boddy' freezes no parameter; paths look like body"),
        (["."], "freeze every parameter"),
    ],
)
def test_a_pattern_that_cannot_be_meant_is_refused(patterns, message):
    with pytest.raises(UserError, match=message):
        make_state(optimizers.sgd(0.1), frozen=patterns)


@pytest.mark.slow
def test_parts_have_rates_of_their_own():
    tx = optimizers.by_path({"^head/": optimizers.sgd(1.0), "": optimizers.sgd(0.25)})
    state = make_state(tx, frozen=())
    after, _ = step(state, tx, frozen=())
    whole, _ = step(make_state(optimizers.sgd(1.0), frozen=()), optimizers.sgd(1.0), frozen=())
    for name, share in (("head", 1.0), ("body", 0.25)):
        moved = np.asarray(after.params[name]["kernel"] - state.params[name]["kernel"])
        full = np.asarray(whole.params[name]["kernel"] - state.params[name]["kernel"])
        np.testing.assert_allclose(moved, share * full, atol=1e-6)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"^head": optimizers.sgd(0.1)}, "matches body"),
        (
            {"": optimizers.sgd(0.1), "^head": optimizers.sgd(0.2)},
            "'\\^head' is the first match of no parameter",
        ),
    ],
)
def test_parts_must_cover_the_model(parts, message):
    with pytest.raises(UserError, match=message):
        make_state(optimizers.by_path(parts), frozen=())
