import dataclasses
import functools

import chex
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dl import losses, optimizers, task
from dl.gradients import accumulated_gradient, mean_gradient, sharpness_aware_gradient
from dl.methods.mixing import mixup, with_mixing
from dl.metrics import Mean
from dl.models.mlp import MLP
from dl.penalties import l2, with_penalty
from dl.precision import FLOAT16, FULL, LossScale, computing_in
from dl.sharding import batch_sharding
from dl.training.state import root_key
from dl.training.step import StepConfig, update_state
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_sharpness_awareness_composes_with_accumulation(problem):
    loss_fn, params, batch = problem
    whole = sharpness_aware_gradient(0.1)(loss_fn)(params, {}, batch, None)
    parts = sharpness_aware_gradient(0.1, accumulated_gradient(3))(loss_fn)(params, {}, batch, None)
    chex.assert_trees_all_close(parts, whole, atol=1e-6)


# Whatever a loss counts, the parts of a batch give the gradient of the whole.

SIZE, LENGTH, VOCABULARY = 12, 5, 4
TOKENS = np.random.default_rng(0).integers(1, VOCABULARY, (SIZE, LENGTH)).astype(np.int32)
TOKENS[np.arange(LENGTH) >= 1 + np.arange(SIZE)[:, None] % 5] = 0  # sequences of 1 to 5 tokens, 0 is padding
UNEQUAL = {
    "image": jax.random.normal(jax.random.key(0), (SIZE, 3)),
    "label": jnp.arange(SIZE) % 2,
    "tokens": jnp.asarray(TOKENS),
    "weight": jnp.linspace(0.1, 3.0, SIZE),
    "mask": jnp.arange(SIZE) % 3 != 0,  # of three parts the first counts nothing, of six two
    "index": jnp.arange(SIZE),
}


def bigram():
    def init(key, tokens_BT):
        return {"params": {"table": jax.random.normal(key, (VOCABULARY, VOCABULARY))}}

    return task.Model(
        init, lambda params, state, tokens_BT, key: (jnp.tanh(params["table"])[tokens_BT], state)
    )


def weighted(model):
    """Examples that weigh as the data say: Σ weight loss / Σ weight."""
    plain = task.classification(model)

    def loss(params, model_state, batch, key):
        logits_BC = model.apply({"params": params}, batch["image"])
        loss_B = losses.cross_entropy(logits_BC, batch["label"])
        return Mean.of(loss_B, batch["weight"] * batch["mask"]), Aux(model_state, {})

    return plain._replace(loss=loss)


COUNTED = {
    "examples": task.classification(PERCEPTRON),
    "tokens": task.language_model(bigram(), padding_id=0),
    "weights": weighted(PERCEPTRON),
}


def without_the_fifth(key, batch):
    return {**batch, "mask": batch["mask"] & (batch["index"] != 4)}


EVERYTHING = l2(0.3, lambda params: jax.tree.map(lambda leaf: True, params))
WRAPPED = {
    "plain": lambda learned: learned,
    "penalty": lambda learned: with_penalty(learned, EVERYTHING),
    "mixing and penalty": lambda learned: with_penalty(with_mixing(learned, without_the_fifth), EVERYTHING),
}


@functools.cache
def params_of(counted):
    return jax.jit(COUNTED[counted].init)(jax.random.key(0), UNEQUAL)["params"]


def loss_and_gradient(grad_fn, learned, params, batch=UNEQUAL):
    (loss, aux), gradient = grad_fn(learned.loss)(params, {}, batch, jax.random.key(1))
    return loss, gradient, {name: metric.compute() for name, metric in aux.metrics.items()}


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", WRAPPED)
@pytest.mark.parametrize("counted", COUNTED)
def test_parts_that_count_unequally_add_up_to_the_full_batch(counted, wrapper):
    learned = WRAPPED[wrapper](COUNTED[counted])
    params = params_of(counted)

    @jax.jit
    def computed(params):
        grad_fns = [mean_gradient, *map(accumulated_gradient, (2, 6))]
        plain = [loss_and_gradient(grad_fn, learned, params) for grad_fn in grad_fns]
        sharp = [
            loss_and_gradient(sharpness_aware_gradient(0.1, grad_fn), learned, params)
            for grad_fn in (mean_gradient, accumulated_gradient(3))
        ]
        return plain, sharp

    plain, sharp = computed(params)
    for full, *in_parts in (plain, sharp):
        assert optax.tree.norm(full[1]) > 0.01
        for parts in in_parts:
            chex.assert_trees_all_close(parts, full, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("num_micro_batches", [1, 2, 3, 6])
def test_the_gradient_over_tokens_is_that_of_numpy(num_micro_batches):
    """Of L = Σ mask (θ x + 0.3 θ²) over tokens / Σ mask it is the mean of x over all tokens, plus 0.6 θ."""
    x_BT = np.random.default_rng(1).normal(size=TOKENS.shape).astype(np.float32)
    batch = {**UNEQUAL, "x": jnp.asarray(x_BT)}

    def loss(params, model_state, batch, key):
        mask_BT = (batch["tokens"] > 0) & batch["mask"][:, None]
        return Mean.of(params["theta"] * batch["x"], mask_BT), Aux(model_state, {})

    learned = with_penalty(task.Task(None, loss), EVERYTHING)
    grad_fn = accumulated_gradient(num_micro_batches)
    value, gradient, _ = loss_and_gradient(grad_fn, learned, {"theta": jnp.float32(2.0)}, batch)
    mean = x_BT[(TOKENS > 0) & np.asarray(UNEQUAL["mask"])[:, None]].mean()
    assert float(gradient["theta"]) == pytest.approx(mean + 0.6 * 2, rel=1e-5)
    assert float(value) == pytest.approx(2 * mean + 0.3 * 4, rel=1e-5)


@pytest.mark.slow
def test_examples_mix_within_their_part_and_the_parts_weigh_by_what_they_count():
    learned = with_mixing(COUNTED["examples"], mixup(1.0, 2))
    params = params_of("examples")
    loss, gradient, _ = loss_and_gradient(accumulated_gradient(2), learned, params)
    parts = [jax.tree.map(lambda x, k=k: x[k::2], UNEQUAL) for k in range(2)]
    keys = [jax.random.fold_in(jax.random.key(1), k) for k in range(2)]
    found = [mean_gradient(learned.loss)(params, {}, *pair) for pair in zip(parts, keys, strict=True)]
    shares = np.array([float(part["mask"].sum()) for part in parts]) / float(UNEQUAL["mask"].sum())
    by_hand = jax.tree.map(
        lambda a, b: shares[0] * a + shares[1] * b, *((loss, grad) for (loss, _), grad in found)
    )
    chex.assert_trees_all_close((loss, gradient), by_hand, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("grad_fn", [mean_gradient, accumulated_gradient(3)], ids=["full", "parts"])
def test_a_batch_that_counts_nothing_has_no_gradient(grad_fn):
    nothing = {**UNEQUAL, "mask": jnp.zeros(SIZE, bool)}
    learned = with_penalty(COUNTED["tokens"], EVERYTHING)
    params = params_of("tokens")
    loss, gradient, _ = loss_and_gradient(grad_fn, learned, params, nothing)
    assert loss == 0
    np.testing.assert_array_equal(gradient["table"], 0)


@pytest.mark.slow
@pytest.mark.parametrize("policy", [FULL, FLOAT16], ids=["float32", "float16"])
def test_steps_under_a_loss_scale_are_those_of_the_full_batch(policy):
    """In float16 a gradient of sums, 2¹⁵ times that of 21 values around 50, would be infinite."""
    tx = optimizers.sgd(0.1)
    learned = computing_in(policy, with_penalty(task.regression(PERCEPTRON), l2(0.1)))
    batch = {**UNEQUAL, "target": 50 * UNEQUAL["image"][:, :2]}

    @jax.jit
    def ends(batch):
        def end(grad_fn, scale):
            config = StepConfig(
                init_fn=learned.init, loss_fn=learned.loss, tx=tx, grad_fn=grad_fn, loss_scale=scale
            )
            return update_state(config, config.init(batch, 0), batch)[0].params

        scale = LossScale.create(2.0**7 if policy is FLOAT16 else 2.0**15)
        return (
            end(mean_gradient, None),
            end(mean_gradient, scale),
            end(accumulated_gradient(2), scale),
            end(accumulated_gradient(3), scale),
        )

    full, *others = ends(batch)
    start = learned.init(jax.random.split(root_key(0))[0], batch)["params"]
    assert optax.tree.norm(jax.tree.map(jnp.subtract, full, start)) > 0.1
    for other in others:
        chex.assert_trees_all_close(other, full, rtol=1e-5 if policy is FULL else 2e-2, atol=1e-5)


@pytest.mark.slow
def test_members_and_devices_accumulate_as_one_does_alone(mesh8):
    learned, tx = WRAPPED["penalty"](COUNTED["tokens"]), optimizers.sgd(0.5)
    batch = jax.tree.map(lambda x: jnp.concatenate([x, x[:4]]), UNEQUAL)  # 16 rows, two a device

    config = StepConfig(init_fn=learned.init, loss_fn=learned.loss, tx=tx)

    def step(state, batch, grad_fn):
        return update_state(dataclasses.replace(config, grad_fn=grad_fn), state, batch)[0].params

    states = jax.vmap(lambda seed: config.init(batch, seed))(jnp.arange(2))
    full = [step(jax.tree.map(lambda x, k=k: x[k], states), batch, mean_gradient) for k in range(2)]
    parts = functools.partial(step, grad_fn=accumulated_gradient(2))
    spread = jax.device_put(batch, batch_sharding(mesh8))
    members = jax.device_get(jax.jit(jax.vmap(parts, (0, None)))(states, spread))
    for k in range(2):
        chex.assert_trees_all_close(jax.tree.map(lambda x, k=k: x[k], members), full[k], atol=1e-6)


@pytest.mark.parametrize("grad_fn", [mean_gradient, accumulated_gradient(2)], ids=["full", "parts"])
def test_no_gradient_flows_through_what_is_counted(grad_fn):
    """Of L = Σ θ x / Σ θ² it is Σ x / Σ θ²."""

    def loss(params, model_state, batch, key):
        return Mean((params * batch["x"]).sum(), (params**2 * batch["mask"]).sum()), Aux(model_state, {})

    batch = {"x": jnp.array([0.0, 1.0, 2.0, 5.0]), "mask": jnp.arange(4) < 3}
    (value, _), gradient = grad_fn(loss)(jnp.float32(2.0), {}, batch, None)
    assert float(gradient) == pytest.approx(8 / 12)
    assert float(value) == pytest.approx(16 / 12)


@pytest.mark.parametrize("grad_fn", [mean_gradient, accumulated_gradient(2)], ids=["full", "parts"])
def test_a_loss_that_is_a_number_is_refused(grad_fn):
    def loss(params, model_state, batch, key):
        return params.sum(), Aux(model_state, {})

    with pytest.raises(TypeError, match=r"must be a dl.metrics.Mean: return Mean.of\(loss_B"):
        grad_fn(loss)(jnp.ones(2), {}, {"mask": jnp.ones(4, bool)}, None)
