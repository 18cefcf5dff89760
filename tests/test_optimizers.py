"""Optimizers against references written here in NumPy from the papers; schedules against their formulas.

To add an optimizer, add a row to OPTIMIZERS: the recipe, and a generator that yields a parameter after each
gradient, with the options to call it with.
"""

import math

import chex
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dl import optimizers
from dl.errors import UserError
from dl.models.vit import ViT

RANDOM = np.random.default_rng(0)
START = {"kernel": RANDOM.normal(size=(4, 3)), "bias": RANDOM.normal(size=3)}
GRADIENTS = {"kernel": RANDOM.normal(size=(10, 4, 3)), "bias": RANDOM.normal(size=(10, 3))}
SCALARS = GRADIENTS["kernel"][:, :1, :1]


def trajectory(tx, start, gradients):
    """Returns the parameters after each gradient, in float64, and the last state."""

    def body(carry, gradient):
        params, state = carry
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    with jax.enable_x64(True):
        start, gradients = jax.tree.map(jnp.asarray, (start, gradients))
        (_, state), places = jax.jit(jax.lax.scan, static_argnums=0)(body, (start, tx.init(start)), gradients)
        return jax.tree.map(np.asarray, places), state


def sgd(place, gradients, rate, momentum=0.0, nesterov=False, decay=0.0):
    velocity = 0.0
    for g in gradients:
        g = g + decay * place
        velocity = momentum * velocity + g
        place = place - rate * (g + momentum * velocity if nesterov else velocity)
        yield place


def adam(place, gradients, rate, decay=0.0, b1=0.9, b2=0.999, eps=1e-8):
    m = v = 0.0
    for t, g in enumerate(gradients, 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        direction = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
        place = place - rate * (direction + decay * place)
        yield place


def adagrad(place, gradients, rate, decay=0.0, squares=0.0):
    for g in gradients:
        squares = squares + g * g
        place = place - rate * (g / np.sqrt(squares) + decay * place)
        yield place


def rmsprop(place, gradients, rate, decay=0.0, momentum=0.0, rho=0.9, eps=1e-8):
    v = velocity = 0.0
    for g in gradients:
        v = rho * v + (1 - rho) * g * g
        velocity = momentum * velocity + g / (np.sqrt(v) + eps)
        place = place - rate * (velocity + decay * place)
        yield place


def lion(place, gradients, rate, decay=0.0, b1=0.9, b2=0.99):
    m = 0.0
    for g in gradients:
        place = place - rate * (np.sign(b1 * m + (1 - b1) * g) + decay * place)
        m = b2 * m + (1 - b2) * g
        yield place


def lamb(place, gradients, rate, decay=0.0, b1=0.9, b2=0.999, eps=1e-6):
    m = v = 0.0
    for t, g in enumerate(gradients, 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        u = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps) + decay * place
        ratio = np.linalg.norm(place) / np.linalg.norm(u) if place.ndim > 1 else 1.0
        place = place - rate * ratio * u
        yield place


def lars(place, gradients, rates, decay=0.0, momentum=0.9, trust=1e-3):
    velocity = 0.0
    for g, rate in zip(gradients, rates, strict=True):
        u = g + decay * place
        ratio = trust * np.linalg.norm(place) / np.linalg.norm(u) if place.ndim > 1 else 1.0
        velocity = momentum * velocity + rate * ratio * u
        place = place - velocity
        yield place


def adafactor(place, gradients, rate, decay=0.0, factored=True, relative=True):
    row = column = v = 0.0
    for t, g in enumerate(gradients, 1):
        beta, squares = 1 - t**-0.8, g * g + 1e-30
        if factored and place.ndim > 1:
            row = beta * row + (1 - beta) * squares.sum(1)
            column = beta * column + (1 - beta) * squares.sum(0)
            v = np.outer(row, column) / row.sum()
        else:
            v = beta * v + (1 - beta) * squares
        u = g / np.sqrt(v)
        u = u / max(1.0, np.sqrt((u * u).mean()))
        scale = max(1e-3, np.sqrt((place * place).mean())) if relative else 1.0
        place = place - rate * (scale * u + decay * place)
        yield place


def newton_schulz(x, eps):
    """`zeropower_via_newtonschulz5` of the author's code, in the precision of x."""
    x = x / (np.linalg.norm(x) + eps)
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * (x @ x.T) @ x + 2.0315 * (x @ x.T) @ (x @ x.T) @ x
    return x


def muon(place, gradients, rate, decay=0.0, mu=0.95):
    """`muon_update` of the author's code (KellerJordan/Muon): lerp, Nesterov, √max(1, out / in)."""
    m = np.zeros_like(place)
    for g in gradients:
        m = m + (1 - mu) * (g - m)
        x = newton_schulz(g + mu * (m - g), 1e-7) * max(1, place.shape[1] / place.shape[0]) ** 0.5
        place = place * (1 - rate * decay) - rate * x
        yield place


def muon_like_adamw(place, gradients, rate, decay=0.0, mu=0.95):
    if place.ndim == 1:
        yield from adam(place, gradients, rate, b2=0.95)
        return
    m = 0.0
    for t, g in enumerate(gradients, 1):
        m = mu * m + (1 - mu) * g
        x = newton_schulz(mu * m / (1 - mu ** (t + 1)) + (1 - mu) * g / (1 - mu**t), 1e-8)
        place = place - rate * (0.2 * math.sqrt(max(place.shape)) * x + decay * place)
        yield place


def schedule_free(place, gradients, rates, decay=0.0, b1=0.9, b2=0.999, eps=1e-8):
    x = y = z = place
    v = total = 0.0
    for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        v = b2 * v + (1 - b2) * g * g
        z = z - rate * (g / (np.sqrt(v / (1 - b2**t)) + eps) + decay * y)
        total += rate**2
        x = x + rate**2 / total * (z - x)
        y = (1 - b1) * z + b1 * x
        yield y


WARM = optimizers.constant(0.75, warmup_steps=3)  # exact: optax computes a warm-up in float32
WARM_RATES = np.array([0.25, 0.5] + 8 * [0.75])
OPTIMIZERS = {
    "sgd": (optimizers.sgd(0.1), sgd, {"rate": 0.1}),
    "momentum": (optimizers.sgd(0.1, 0.9), sgd, {"rate": 0.1, "momentum": 0.9}),
    "nesterov": (
        optimizers.sgd(0.1, 0.9, nesterov=True),
        sgd,
        {"rate": 0.1, "momentum": 0.9, "nesterov": True},
    ),
    "sgd_l2": (optimizers.sgd(0.1, weight_decay=0.2), sgd, {"rate": 0.1, "decay": 0.2}),
    "adam": (optimizers.adam(0.1), adam, {"rate": 0.1}),
    "adamw": (optimizers.adamw(0.1, weight_decay=0.2), adam, {"rate": 0.1, "decay": 0.2}),
    "adagrad": (optimizers.adagrad(0.1, weight_decay=0.2), adagrad, {"rate": 0.1, "decay": 0.2}),
    "adagrad_damped": (optimizers.adagrad(0.1, 0.5), adagrad, {"rate": 0.1, "squares": 0.5}),
    "rmsprop": (optimizers.rmsprop(0.1), rmsprop, {"rate": 0.1}),
    "rmsprop_momentum": (
        optimizers.rmsprop(0.1, momentum=0.9, weight_decay=0.2),
        rmsprop,
        {"rate": 0.1, "momentum": 0.9, "decay": 0.2},
    ),
    "lion": (optimizers.lion(0.1, weight_decay=0.2), lion, {"rate": 0.1, "decay": 0.2}),
    "lamb": (optimizers.lamb(0.1, weight_decay=0.2), lamb, {"rate": 0.1, "decay": 0.2}),
    "lars": (optimizers.lars(WARM, weight_decay=0.2), lars, {"rates": WARM_RATES, "decay": 0.2}),
    "adafactor": (
        optimizers.adafactor(0.1, min_factored_dim=2, weight_decay=0.2),
        adafactor,
        {"rate": 0.1, "decay": 0.2},
    ),
    "adafactor_whole": (
        optimizers.adafactor(0.1, relative_step=False),
        adafactor,
        {"rate": 0.1, "factored": False, "relative": False},
    ),
    "muon_like_adamw": (
        optimizers.muon_like_adamw(0.1, weight_decay=0.2),
        muon_like_adamw,
        {"rate": 0.1, "decay": 0.2},
    ),
    "schedule_free": (
        optimizers.schedule_free_adamw(WARM, weight_decay=0.2),
        schedule_free,
        {"rates": WARM_RATES, "decay": 0.2},
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_ten_steps_equal_the_reference(name):
    tx, reference, options = OPTIMIZERS[name]
    actual, _ = trajectory(tx, START, GRADIENTS)
    undecayed = {key: value for key, value in options.items() if key != "decay"}
    expected = {
        "kernel": np.stack([*reference(START["kernel"], GRADIENTS["kernel"], **options)]),
        "bias": np.stack([*reference(START["bias"], GRADIENTS["bias"], **undecayed)]),
    }
    chex.assert_trees_all_close(actual, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", [*OPTIMIZERS, "plateau"])
def test_a_step_keeps_the_shapes_and_types_of_the_state(name):
    tx = optimizers.adamw(optimizers.plateau(0.1)) if name == "plateau" else OPTIMIZERS[name][0]
    params = jax.tree.map(jnp.float32, START)
    before = jax.eval_shape(tx.init, params)
    update = optax.with_extra_args_support(tx).update
    updates, after = jax.eval_shape(lambda state: update(params, state, params, value=0.0), before)
    chex.assert_trees_all_equal_shapes_and_dtypes(before, after)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)


@pytest.mark.parametrize(
    ("tx", "peer", "options"),
    [
        (optimizers.sgd(0.1, 0.9, nesterov=True), "SGD", {"momentum": 0.9, "nesterov": True}),
        (optimizers.adam(0.1), "Adam", {}),
        (optimizers.adagrad(0.1, 0.5), "Adagrad", {"initial_accumulator_value": 0.5, "eps": 0}),
        (optimizers.rmsprop(0.1, momentum=0.9), "RMSprop", {"alpha": 0.9, "momentum": 0.9}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_ten_steps_equal_pytorch(tx, peer, options):
    torch = pytest.importorskip("torch")
    leaf = torch.tensor(START["kernel"], requires_grad=True)
    other = getattr(torch.optim, peer)([leaf], lr=0.1, **options)
    places = []
    for gradient in GRADIENTS["kernel"]:
        leaf.grad = torch.tensor(gradient)
        other.step()
        places.append(leaf.detach().numpy().copy())
    actual, _ = trajectory(tx, START["kernel"], GRADIENTS["kernel"])
    np.testing.assert_allclose(actual, places, rtol=0, atol=1e-10)


NETWORK = {
    "embed": {"embedding": (6, 4)},
    "Conv_0": {"kernel": (3, 2, 5), "bias": (5,)},
    "Conv_1": {"kernel": (2, 2, 3, 5)},
    "block": {"Dense_9": {"kernel": (4, 6)}},
    "Dense_0": {"kernel": (3, 8), "bias": (8,)},
    "Dense_10": {"kernel": (8, 2), "bias": (2,)},
    "Dense_9": {"kernel": (8, 8), "bias": (8,)},
}
HIDDEN = ["Conv_0/kernel", "Conv_1/kernel", "Dense_0/kernel", "Dense_9/kernel", "block/Dense_9/kernel"]


@pytest.mark.slow
def test_muon_is_its_authors_on_hidden_kernels_and_adamw_on_the_rest():
    random = np.random.default_rng(3)
    shapes = {"/".join(path): shape for path, shape in flax.traverse_util.flatten_dict(NETWORK).items()}
    start, gradients = (
        {name: random.normal(size=(*steps, *shape)) for name, shape in shapes.items()} for steps in ((), (4,))
    )

    def nest(flat):
        return flax.traverse_util.unflatten_dict({tuple(k.split("/")): v for k, v in flat.items()})

    places, _ = trajectory(optimizers.muon(0.1, weight_decay=0.2), nest(start), nest(gradients))
    actual = {"/".join(k): v for k, v in flax.traverse_util.flatten_dict(places).items()}
    for name, shape in shapes.items():
        if name in HIDDEN:
            flat = (-1, shape[-1])
            steps = [g.reshape(flat) for g in gradients[name]]
            expected = [x.reshape(shape) for x in muon(start[name].reshape(flat), steps, 0.1, 0.2)]
        else:
            decay = 0.0 if name.endswith("bias") else 0.2
            options = {"decay": decay, "b2": 0.95, "eps": 1e-10}
            expected = [*adam(start[name], gradients[name], 0.1 * 0.015, **options)]
        np.testing.assert_allclose(actual[name], expected, rtol=0, atol=1e-9, err_msg=name)


@pytest.mark.parametrize(
    ("names", "hidden"),
    [
        (["head/kernel", "backbone/block0/mlp0/kernel"], ["backbone/block0/mlp0/kernel"]),
        (["lm_head/kernel", "Dense_0/kernel", "Dense_1/kernel"], ["Dense_0/kernel", "Dense_1/kernel"]),
        (["Dense_0/kernel", "Dense_1/kernel", "DropConnectDense_7/kernel"], [0, 2]),
        (["Net_0/Dense_0/kernel", "Net_0/Dense_1/kernel", "Net_0/Block_0/Dense_5/kernel"], [0, 2]),
        (["class_token", "positions", "patches/kernel", "head/kernel"], ["patches/kernel"]),
    ],
)
def test_the_head_is_known_by_its_name_or_as_the_last_dense_layer(names, hidden):
    tree = flax.traverse_util.unflatten_dict({tuple(name.split("/")): jnp.ones((2, 2)) for name in names})
    chosen = flax.traverse_util.flatten_dict(optimizers.hidden_kernels(tree), sep="/")
    hidden = [names[which] if isinstance(which, int) else which for which in hidden]
    assert sorted(name for name, is_hidden in chosen.items() if is_hidden) == sorted(hidden)


def test_a_step_of_muon_like_adamw_has_the_stated_size():
    """Newton-Schulz leaves singular values between about 0.7 and 1.2, so the RMS is near 0.2 α."""
    gradient = np.random.default_rng(1).normal(size=(1, 32, 32))
    tx = optimizers.muon_like_adamw(1.0, weight_decay=0.0)
    moved, _ = trajectory(tx, np.zeros((32, 32)), gradient)
    assert np.sqrt((moved**2).mean()) == pytest.approx(0.2, rel=0.2)


def test_adafactor_without_a_rate_takes_the_papers_capped_relative_step():
    gradients = RANDOM.normal(size=(3, 4, 3))
    actual, _ = trajectory(optimizers.adafactor(min_factored_dim=2), START["kernel"], gradients)
    np.testing.assert_allclose(actual, [*adafactor(START["kernel"], gradients, 1e-2)], rtol=1e-6)
    _, late = trajectory(optimizers.adafactor(), np.ones(2), np.ones((20_000, 2)))
    found = optax.tree_utils.tree_get_all_with_path(late, "learning_rate")
    assert float(found[0][1]) == pytest.approx(20_000**-0.5)


def test_adam_corrects_its_bias():
    """For g = (1, 1, 1, −1, −1) the steps in units of the rate are 1, 1, 1, 0.4184, 0.0721."""
    places, _ = trajectory(optimizers.adam(1.0, eps=0.0), np.float64(0), np.array([1.0, 1, 1, -1, -1]))
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
    l2 = optax.chain(optax.add_decayed_weights(0.2), optimizers.adam(0.1))
    decoupled, coupled = (
        trajectory(tx, np.ones((1, 1)), SCALARS[:5])[0]
        for tx in (optimizers.adamw(0.1, weight_decay=0.2), l2)
    )
    assert abs(decoupled[-1] - coupled[-1]).min() > 1e-3


def test_a_parameter_without_gradient_decays_by_exactly_one_minus_rate_times_decay():
    places, _ = trajectory(optimizers.adamw(0.1, weight_decay=0.5), np.ones((1, 1)), np.zeros((4, 1, 1)))
    np.testing.assert_allclose(places.ravel(), 0.95 ** np.arange(1, 5), rtol=1e-12)


def test_decay_spares_biases_and_scales():
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2), "scale": jnp.ones(2)}
    tx = optimizers.adamw(0.1, weight_decay=0.5)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    chex.assert_trees_all_close(
        updates,
        {"kernel": jnp.full((2, 2), -0.05), "bias": jnp.zeros(2), "scale": jnp.zeros(2)},
    )


def test_decay_spares_class_tokens_positions_and_biases_of_more_dimensions():
    model = ViT(3, dim=8, num_layers=1, num_heads=2, patch_size=8)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    decayed = flax.traverse_util.flatten_dict(optimizers.kernels(params), sep="/")
    assert all(is_decayed == name.endswith("/kernel") for name, is_decayed in decayed.items())
    others = {"bias": (3, 2), "scale": (3, 2), "pos_embed": (1, 5, 4), "cls_token": (1, 1, 4)}
    shapes = {name: jnp.ones(shape) for name, shape in {**others, "embedding": (5, 4)}.items()}
    assert optimizers.kernels(shapes) == {**dict.fromkeys(others, False), "embedding": True}


def test_clipping_scales_the_whole_gradient_to_its_norm():
    tx = optimizers.sgd(1.0, clip_norm=1.0)
    gradient = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    updates, _ = tx.update(gradient, tx.init(gradient), gradient)
    chex.assert_trees_all_close(updates, {"a": jnp.array([-0.6]), "b": jnp.array([-0.8])})


RECIPES = (
    *("sgd", "adam", "adamw", "adagrad", "rmsprop", "lion", "lamb", "lars", "adafactor", "muon"),
    *("muon_like_adamw", "schedule_free_adamw"),
)
WITH_MOMENTS = ("adam", "adamw", "lion", "lamb", "muon", "schedule_free_adamw")


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
        (
            optimizers.wsd(2.0, 12, warmup_steps=2, decay_steps=4, end=1.0),
            {0: 1, 1: 2, 2: 2, 8: 2, 9: 1.75, 10: 1.5, 12: 1, 20: 1},
        ),
        (optimizers.wsd(1.0, 10, decay_steps=5), {0: 1, 5: 1, 6: 0.8, 10: 0}),
        (optimizers.step(1.0, [3, 6]), {0: 1, 2: 1, 3: 0.1, 5: 0.1, 6: 0.01}),
        (optimizers.step(1.0, [4], factor=0.5, warmup_steps=2), {0: 0.5, 1: 1, 3: 1, 4: 0.5}),
        # within the warm-up
        (optimizers.step(1.0, [2, 6], factor=0.5, warmup_steps=4), {1: 0.5, 2: 0.375, 3: 0.5, 6: 0.25}),
        (optimizers.cosine(1.0, 4, warmup_steps=4), {0: 0.25, 3: 1}),
    ],
)
def test_schedules(schedule, expected):
    actual = {step: float(schedule(step)) for step in expected}
    assert actual == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optimizers.wsd(1.0, 10, warmup_steps=6, decay_steps=5), "exceed num_steps=10"),
        (lambda: optimizers.wsd(1.0, 10, decay_steps=-1), "decay_steps=-1"),
        (lambda: optimizers.cosine(1.0, 10, warmup_steps=11), "warmup_steps=11 is longer than the run"),
        (lambda: optimizers.linear(1.0, 10, warmup_steps=11), "warmup_steps=11 is longer than the run"),
        (lambda: optimizers.wsd(1.0, 10, decay_steps=0, warmup_steps=11), "warmup_steps=11 is longer"),
        (lambda: optimizers.constant(1.0, num_steps=10, warmup_steps=11), "warmup_steps=11 is longer"),
        (lambda: optimizers.step(1.0, [3], num_steps=10, warmup_steps=11), "warmup_steps=11 is longer"),
        (lambda: optimizers.cosine(1.0, 0), "num_steps=0 is out of range"),
        (lambda: optimizers.linear(1.0, -5), "num_steps=-5 is out of range"),
        (lambda: optimizers.cosine(1.0, 2**31), "num_steps=2147483648 is out of range"),
        (lambda: optimizers.cosine(1.0, 10.5), "num_steps=10.5 is out of range; it must be a whole number"),
        (lambda: optimizers.cosine(1.0, 10, warmup_steps=0.1), "warmup_steps=0.1 is out of range"),
        (lambda: optimizers.constant(1.0, warmup_steps=-1), "warmup_steps=-1 is out of range"),
        (lambda: optimizers.cosine(1.0, 10, end=2.0), "end=2.0 is out of range"),
        (lambda: optimizers.cosine(-1.0, 10), "learning_rate=-1.0 is out of range"),
        (lambda: optimizers.cosine(math.nan, 10), "learning_rate=nan is out of range"),
        (lambda: optimizers.constant("1e-3"), "learning_rate='1e-3' is not a number"),
        (lambda: optimizers.step(1.0, [3, 3]), r"boundaries=\[3, 3\] do not increase"),
        (lambda: optimizers.step(1.0, [6, 3]), "do not increase"),
        (lambda: optimizers.step(1.0, [-3]), "boundary=-3 is out of range"),
        (lambda: optimizers.step(1.0, [0.5]), "boundary=0.5 is out of range"),
        (lambda: optimizers.step(1.0, [3, 10], num_steps=10), "boundary=10 is out of range"),
        (lambda: optimizers.step(1.0, [3], factor=0.0), "factor=0.0 is out of range"),
        (lambda: optimizers.plateau(1.0, factor=1.0), "factor=1.0 is out of range"),
        (lambda: optimizers.plateau(1.0, patience=0), "patience=0 is out of range"),
        (lambda: optimizers.plateau(1.0, window=0), "window=0 is out of range"),
        (lambda: optimizers.plateau(1.0, min_improvement=-1.0), "min_improvement=-1.0 is out of range"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_in_one_line(make, message):
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        *(
            (name, {"learning_rate": value}, "learning_rate=")
            for name in RECIPES
            for value in (-1.0, math.nan)
        ),
        *((name, {"clip_norm": value}, "clip_norm=") for name in RECIPES for value in (0.0, -1.0, math.nan)),
        *((name, {"weight_decay": -0.1}, "weight_decay=-0.1") for name in RECIPES if name != "adam"),
        *((name, {"b1": 1.0}, "b1=1.0") for name in RECIPES if name in WITH_MOMENTS),
        *((name, {"b2": -0.1}, "b2=-0.1") for name in RECIPES if name in WITH_MOMENTS),
        *((name, {"momentum": 1.0}, "momentum=1.0") for name in ("sgd", "rmsprop", "lars", "muon")),
        ("adam", {"eps": -1.0}, "eps=-1.0"),
        ("muon", {"adam_ratio": -1.0}, "adam_ratio=-1.0"),
        ("muon", {"update_rms": 0.0}, "update_rms=0.0"),
        ("adagrad", {"initial_accumulator": -1.0}, "initial_accumulator=-1.0"),
        ("rmsprop", {"decay": 1.0}, "decay=1.0"),
        ("lars", {"trust_coefficient": 0.0}, "trust_coefficient=0.0"),
        ("adafactor", {"clip_threshold": 0.0}, "clip_threshold=0.0"),
        ("adafactor", {"min_factored_dim": 0}, "min_factored_dim=0"),
        ("schedule_free_adamw", {"b1": 0.0}, "b1=0.0"),
        ("schedule_free_adamw", {"learning_rate": optimizers.plateau(1.0)}, "plateau"),
        ("adam", {"b1": True}, "b1=True is not a number"),
    ],
)
def test_an_optimizer_that_cannot_be_is_refused_in_one_line(name, options, message):
    with pytest.raises(UserError, match=message) as caught:
        getattr(optimizers, name)(**{"learning_rate": 0.1, **options})
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_traced_rate_passes():
    def first_step(rate):
        tx = optimizers.sgd(optimizers.cosine(rate, 10, warmup_steps=2), momentum=0.9, clip_norm=10.0)
        return tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2))[0][0]

    assert jax.vmap(first_step)(jnp.array([1.0, 2.0])).tolist() == [-0.5, -1.0]


def rates_on_a_plateau(losses, **options):
    """Returns the rate of each step whose loss is given."""
    tx, params = optimizers.sgd(optimizers.plateau(1.0, factor=0.5, **options)), jnp.ones((1, 1))

    def body(state, loss):
        _, state = tx.update(params, state, params, value=loss)
        return state, optax.tree_utils.tree_get_all_with_path(state, "learning_rate")[0][1]

    return jax.lax.scan(body, tx.init(params), jnp.float32(losses))[1].tolist()


def test_the_rate_falls_after_patience_windows_without_improvement():
    # 6 and 5 do not improve on 5; 4 does, the next two do not
    assert rates_on_a_plateau([5, 6, 5, 4, 4, 4, 4], patience=2) == [1, 1, 1, 0.5, 0.5, 0.5, 0.25]
    # windows of two steps have the means 5, 5, 5: noise within a window is no improvement
    assert rates_on_a_plateau([5, 5, 1, 9, 9, 1, 5, 5], patience=2, window=2) == [1] * 6 + [0.5, 0.5]
    assert rates_on_a_plateau([1] * 5, patience=1, end=0.4) == pytest.approx([1, 1, 0.5, 0.4, 0.4])


@pytest.mark.parametrize(
    "tx",
    [
        optimizers.adamw(0.1),
        optimizers.adamw(optimizers.linear(0.1, 10)),
        optimizers.lars(0.1),
        optimizers.muon(0.1),
        optimizers.schedule_free_adamw(0.1),
    ],
    ids=["number", "schedule", "lars", "muon", "schedule_free"],
)
def test_the_state_tells_the_rate_that_was_applied(tx):
    params = {"kernel": jnp.ones((2, 2))}
    _, state = tx.update(params, tx.init(params), params)
    found = optax.tree_utils.tree_get_all_with_path(state, "learning_rate")
    assert float(found[0][1]) == pytest.approx(0.1)
