"""Lower rates for lower layers, and layers that begin to train later."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dl import optimizers
from dl.errors import UserError
from dl.models.bert import BERT
from dl.models.gpt2 import GPT2
from dl.models.transfer import WithHead
from dl.models.vit import ViT
from dl.optimizers.transforms import with_rate

GPT = GPT2(vocab_size=5, max_length=4, dim=4, num_layers=3, num_heads=2)
TOKENS = jnp.zeros((1, 3), jnp.int32)


def params_of(model, inputs=TOKENS):
    shapes = jax.eval_shape(model.init, jax.random.key(0), inputs)["params"]
    return jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)


def scales(tx, params):
    """Returns the length of the step of each path, for gradients of ones."""
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    return {
        "/".join(part.key for part in path): -leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(updates)
    }


def test_a_part_of_the_layers_has_the_rates_that_it_has_in_the_whole():
    params = params_of(GPT)
    whole = scales(optimizers.layer_wise_decay(optax.sgd(1.0), 0.5), params)
    decay = optimizers.layer_wise_decay(optax.sgd(1.0), 0.5, num_layers=3)
    lower = {"layers": {name: params["layers"][name] for name in ("layer0", "layer1")}}
    assert {name: float(rate.max()) for name, rate in scales(decay, lower).items()} == {
        name: float(rate.max()) for name, rate in whole.items() if "layer0" in name or "layer1" in name
    }
    parts = optimizers.gradual_unfreezing(decay, {"final_norm|layer2/": 0, "": 0})
    chex.assert_trees_all_equal(scales(parts, params), whole)
    with pytest.raises(UserError, match="num_layers=2, and the parameters have 3 layers"):
        optimizers.layer_wise_decay(optax.sgd(1.0), 0.5, num_layers=2).init(params)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "inputs", "expected"),
    [
        (
            GPT,
            TOKENS,
            {
                "token_embedding/embedding": 4,
                "position_embedding/embedding": 4,
                "layers/layer0/attention/query/kernel": 3,
                "layers/layer2/feed_forward/out/bias": 1,
                "final_norm/scale": 0,
            },
        ),
        (
            WithHead(BERT(5, 4, 4, 2, 2, pooling="first"), 2),
            TOKENS,
            {
                "backbone/embedding_norm/scale": 3,
                "backbone/type_embedding/embedding": 3,
                "backbone/layers/layer1/attention/out/kernel": 1,
                "backbone/pooler/kernel": 0,
                "head/kernel": 0,
            },
        ),
        (
            ViT(3, dim=8, num_layers=2, num_heads=2, patch_size=4, mlp_dim=12),
            jnp.zeros((1, 8, 8, 3)),
            {"patches/kernel": 3, "class_token": 3, "positions": 3, "block0/mlp0/kernel": 2, "head/bias": 0},
        ),
    ],
    ids=["gpt2", "bert", "vit"],
)
def test_the_rate_falls_by_one_factor_a_layer(model, inputs, expected):
    found = scales(optimizers.layer_wise_decay(optax.sgd(0.5), 0.8), params_of(model, inputs))
    for path, exponent in expected.items():
        np.testing.assert_allclose(found[path], 0.5 * 0.8**exponent, rtol=1e-6, err_msg=path)


@pytest.mark.slow
def test_scanned_layers_have_the_rates_of_layers():
    tx = optimizers.layer_wise_decay(optax.sgd(0.5), 0.8)
    plain, scanned = (scales(tx, params_of(GPT.clone(is_scanned=scan))) for scan in (False, True))
    for path, leaf in scanned.items():
        if "/layer/" not in path:
            np.testing.assert_array_equal(leaf, plain[path])
            continue
        for number in range(3):
            np.testing.assert_array_equal(leaf[number], plain[path.replace("/layer/", f"/layer{number}/")])


@pytest.mark.slow
def test_it_equals_optimizers_with_a_rate_for_each_layer():
    params = params_of(GPT)
    decayed = optimizers.layer_wise_decay(optimizers.adamw(0.1, weight_decay=0.3), 0.5)
    rates = {"layer0/": 0.1 / 8, "layer1/": 0.1 / 4, "layer2/": 0.1 / 2, "embedding": 0.1 / 16, "": 0.1}
    parts = optimizers.by_path(
        {pattern: optimizers.adamw(rate, weight_decay=0.3) for pattern, rate in rates.items()}
    )
    chex.assert_trees_all_close(scales(decayed, params), scales(parts, params), rtol=1e-5)


def test_the_rate_of_the_head_is_in_the_state_and_can_be_replaced():
    params = params_of(GPT)
    tx = with_rate(optimizers.layer_wise_decay(optimizers.sgd(0.1), 0.5), lambda count: 0.3)
    updates, state = tx.update(params, tx.init(params), params)
    np.testing.assert_allclose(updates["final_norm"]["scale"], -0.3, rtol=1e-6)
    assert optax.tree_utils.tree_get(state, "learning_rate") == np.float32(0.3)


def test_a_decay_that_cannot_be_is_refused():
    with pytest.raises(UserError, match="decay"):
        optimizers.layer_wise_decay(optax.sgd(0.1), 1.5)
    params = {"Dense_0": {"kernel": jnp.ones((2, 2))}}
    with pytest.raises(UserError, match="no parameter belongs to a layer.* look like Dense_0/kernel"):
        optimizers.layer_wise_decay(optax.sgd(0.1), 0.5).init(params)
    with pytest.raises(UserError, match="schedule_free_adamw"):
        optimizers.layer_wise_decay(optimizers.schedule_free_adamw(0.1), 0.5).init(params_of(GPT))
    custom = optimizers.layer_wise_decay(optax.sgd(1.0), 0.5, lambda path: {"a": 0, "b": 1}.get(path))
    found = scales(custom, {name: jnp.ones(2) for name in "abc"})
    assert {name: float(leaf[0]) for name, leaf in found.items()} == {"a": 0.25, "b": 0.5, "c": 1.0}


START = {"head": jnp.array([1.0, -0.0]), "body": jnp.array([-0.0, 2.0]), "base": jnp.array([3.0])}
GRADIENTS = [
    jax.tree.map(lambda leaf, step=step: jax.random.normal(jax.random.key(step), leaf.shape), START)
    for step in range(8)
]
RATE = optimizers.linear(0.1, 8)
STARTS = {"head": 0, "body": 3, "": 5}


def trajectory(tx, start, gradients, state=None):
    """Returns the parameters after each step, and the number of compilations."""

    @jax.jit
    def step(params, state, gradient):
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    params, state, found = start, tx.init(start), [start]
    for gradient in gradients:
        params, state = step(params, state, gradient)
        found.append(params)
    return found, step._cache_size()


def test_a_part_keeps_every_bit_until_its_step_and_then_starts_afresh():
    tx = optimizers.gradual_unfreezing(optimizers.adamw(RATE, weight_decay=0.1), STARTS)
    found, num_compilations = trajectory(tx, START, GRADIENTS)
    assert num_compilations == 1
    for name, start in {"head": 0, "body": 3, "base": 5}.items():
        for params in found[: start + 1]:
            np.testing.assert_array_equal(
                np.asarray(params[name]).view(np.int32), np.asarray(START[name]).view(np.int32)
            )
        # From there on it is a new optimizer at the rate of the run's step.
        alone = optimizers.adamw(lambda count, start=start: RATE(count + start), weight_decay=0.1)
        expected, _ = trajectory(alone, {name: START[name]}, [{name: g[name]} for g in GRADIENTS[start:]])
        for params, other in zip(found[start:], expected, strict=True):
            np.testing.assert_allclose(params[name], other[name], rtol=1e-6)


def test_a_gradient_that_is_not_a_number_does_not_reach_a_frozen_part():
    tx = optimizers.gradual_unfreezing(optimizers.adam(0.1), STARTS)
    broken = {**GRADIENTS[0], "body": jnp.array([np.nan, np.inf])}
    found, _ = trajectory(tx, START, [broken, *GRADIENTS[1:]])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found[-1]))


@pytest.mark.parametrize(
    ("starts", "message"),
    [
        ({"head": 0, "body": -1, "": 5}, "-1"),
        ({"head": 0, "body": 1.5, "": 5}, "1.5"),
        ({"head": 0, "body": 3}, "no pattern of .* matches base"),
        ({"": 0, "body": 3}, "the pattern 'body' is the first match of no parameter"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(starts, message):
    with pytest.raises(UserError, match=message):
        optimizers.gradual_unfreezing(optimizers.adam(0.1), starts).init(START)
