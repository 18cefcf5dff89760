import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import expit, softmax
from scipy.stats import norm

from dl import optimizers, task
from dl.models.cnn import CNN, ConvNet, max_pool
from dl.models.mlp import MLP, ResidualMLP
from dl.training.state import num_params


def params_of(model, *shape):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *shape))))["params"]


@pytest.mark.parametrize(
    ("model", "shape", "count"),
    [
        (MLP(hidden=(4,), num_classes=2), (3,), 26),
        # 320 + 2,769,024 + 1,290: one convolution, 26·26·32 values flattened, 128, 10
        (CNN(channels=(32,), hidden=(128,), num_classes=10), (28, 28, 1), 2_770_634),
        # 320 + 18,496 + 819,712 + 5,130: flattened is 64·5·5 = 1,600
        (CNN(channels=(32, 64), hidden=(512,), num_classes=10, pool=True), (28, 28, 1), 843_658),
        # with kernels of 5×5 it is 64·4·4: 832 + 51,264 + 524,800 + 5,130
        (
            CNN(channels=(32, 64), hidden=(512,), num_classes=10, pool=True, kernel_size=(5, 5)),
            (28, 28, 1),
            582_026,
        ),
        # 1,792 + 73,856 + 8,193,000 + 10,010: flattened is 128·8·8 = 8,192; at 28×28 it is 128·7·7
        (CNN((64, 128), (1000,), 10, pool=True, padding="SAME"), (32, 32, 3), 8_278_658),
        (CNN((64, 128), (1000,), 10, pool=True, padding="SAME"), (28, 28, 3), 6_358_658),
        (ConvNet(num_classes=10), (28, 28, 1), 298_186),
        # 50,240 + 3 · (128 + 4,160 + 4,160) + 128 + 650
        (ResidualMLP(64, 64, 3, 10), (28, 28, 1), 76_362),
    ],
)
def test_parameter_counts(model, shape, count):
    assert num_params(params_of(model, *shape)) == count


def test_a_dense_layer_is_x_times_w_plus_b():
    model, random = MLP(hidden=(), num_classes=4), np.random.default_rng(0)
    x_BD, kernel, bias = (random.normal(size=s).astype(np.float32) for s in ((5, 3), (3, 4), (4,)))
    y_BC = model.apply({"params": {"Dense_0": {"kernel": kernel, "bias": bias}}}, x_BD)
    np.testing.assert_allclose(y_BC, x_BD @ kernel + bias, atol=1e-6)


def dense(x_BD, params):
    return x_BD @ params["kernel"] + params["bias"]


def layer_norm(x_BD, params):
    centred_BD = x_BD - x_BD.mean(1, keepdims=True)
    scaled_BD = centred_BD / np.sqrt(np.square(centred_BD).mean(1, keepdims=True) + 1e-6)
    return scaled_BD * params["scale"] + params["bias"]


def residual_mlp(params, x_BD, factors):
    """Returns the logits; each branch is multiplied by its factor."""
    x_BD = dense(x_BD, params["Dense_0"])
    for k, factor in enumerate(factors):
        hidden_BH = dense(layer_norm(x_BD, params[f"LayerNorm_{k}"]), params[f"DropConnectDense_{k}"])
        x_BD = x_BD + factor * dense(np.maximum(hidden_BH, 0), params[f"Dense_{k + 1}"])
    last = len(factors)
    return dense(layer_norm(x_BD, params[f"LayerNorm_{last}"]), params[f"Dense_{last + 1}"])


def residual_params():
    random, model = np.random.default_rng(0), ResidualMLP(5, 4, 2, 3)
    return jax.tree.map(lambda leaf: np.float32(random.normal(size=leaf.shape)), params_of(model, 6))


def test_a_residual_perceptron_adds_its_branches():
    params, x_BD = residual_params(), np.random.default_rng(1).normal(size=(7, 6)).astype(np.float32)
    logits_BC = ResidualMLP(5, 4, 2, 3).apply({"params": params}, x_BD)
    np.testing.assert_allclose(logits_BC, residual_mlp(params, x_BD, (1, 1)), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_later_branches_are_dropped_more_often():
    params, x_BD = residual_params(), np.ones((2000, 6), np.float32)
    model = ResidualMLP(5, 4, 2, 3, stochastic_depth=1.0)
    logits_BC = model.apply({"params": params}, x_BD, train=True, rngs={"dropout": jax.random.key(0)})
    # The last never counts; the first counts double, half of the time.
    kept_C, dropped_C = (residual_mlp(params, x_BD[:1], (factor, 0))[0] for factor in (2, 0))
    is_kept_B, is_dropped_B = (
        np.isclose(logits_BC, row_C[None], atol=1e-4).all(1) for row_C in (kept_C, dropped_C)
    )
    assert (is_kept_B ^ is_dropped_B).all()
    assert is_kept_B.mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("option", ["dropout", "drop_connect", "stochastic_depth"])
def test_what_a_residual_perceptron_drops_it_drops_for_each_example_in_training_alone(option):
    params, x_BD = residual_params(), np.ones((50, 6), np.float32)
    model = ResidualMLP(5, 4, 2, 3, **{option: 0.5})
    logits_BC = model.apply({"params": params}, x_BD, train=True, rngs={"dropout": jax.random.key(0)})
    assert len(np.unique(np.asarray(logits_BC).round(3), axis=0)) > 2
    np.testing.assert_allclose(
        model.apply({"params": params}, x_BD), residual_mlp(params, x_BD, (1, 1)), rtol=1e-4, atol=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize("model", [MLP((8,), 3), CNN((4,), (8,), 3, pool=True)], ids=["mlp", "cnn"])
def test_the_forward_pass_is_a_function(model):
    images = jax.random.normal(jax.random.key(0), (3, 6, 6, 1))
    variables = model.init(jax.random.key(1), images)
    first, second = (np.asarray(model.apply(variables, images)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(jax.jit(model.apply)(variables, images), first, atol=1e-6)


X = np.array([-3.0, -0.7, 0.3, 1.1, 4.0])
SIGMOID = expit(X)
ACTIVATIONS = {  # values and derivatives at X
    "sigmoid": (nn.sigmoid, SIGMOID, SIGMOID * (1 - SIGMOID)),
    "tanh": (nn.tanh, np.tanh(X), 1 / np.cosh(X) ** 2),
    "relu": (nn.relu, np.maximum(X, 0), X > 0),
    "leaky_relu": (nn.leaky_relu, np.where(X > 0, X, 0.01 * X), np.where(X > 0, 1, 0.01)),
    "silu": (nn.silu, X * SIGMOID, SIGMOID * (1 + X * (1 - SIGMOID))),
    "gelu": (
        functools.partial(nn.gelu, approximate=False),
        X * norm.cdf(X),
        norm.cdf(X) + X * norm.pdf(X),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_activation_of_a_hidden_unit(name):
    activation, values, derivatives = ACTIVATIONS[name]
    model = MLP((1,), 1, activation=activation, kernel_init=nn.initializers.ones)
    variables = model.init(jax.random.key(0), jnp.ones((1, 1)))
    value, derivative = jax.vmap(jax.value_and_grad(lambda x: model.apply(variables, x.reshape(1, 1))[0, 0]))(
        jnp.float32(X)
    )
    np.testing.assert_allclose(value, values, atol=1e-6)
    np.testing.assert_allclose(derivative, derivatives, atol=1e-6)


@pytest.mark.slow
def test_softmax_is_stable_at_huge_logits():
    logits = jnp.array([1e4, 1e4, -1e4])
    np.testing.assert_array_equal(nn.softmax(logits), [0.5, 0.5, 0.0])
    np.testing.assert_array_equal(jax.jacobian(nn.softmax)(logits)[0], [0.25, -0.25, 0.0])
    equal = jnp.array([0.0, 1.0, 2.0, 3.0, 4.0])
    np.testing.assert_allclose(nn.softmax(equal), softmax(np.asarray(equal)), rtol=1e-6)


def test_the_mlp_equals_numpy():
    model = MLP(hidden=(4,), num_classes=2)
    x_BD = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    params = model.init(jax.random.key(0), x_BD)["params"]
    first, second = (jax.tree.map(np.asarray, params[f"Dense_{i}"]) for i in range(2))
    hidden = np.maximum(x_BD @ first["kernel"] + first["bias"], 0)
    expected = hidden @ second["kernel"] + second["bias"]
    np.testing.assert_allclose(model.apply({"params": params}, x_BD), expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("model", [CNN((4,), (8,), 3), CNN((4, 4), (8,), 3, pool=True), ConvNet(3)])
@pytest.mark.parametrize("shape", [(28, 28, 1), (17, 23, 3)])
def test_any_image_size_and_any_batch(model, shape):
    variables = model.init(jax.random.key(0), jnp.zeros((1, *shape)))
    for batch in (1, 7):
        assert model.apply(variables, jnp.zeros((batch, *shape))).shape == (batch, 3)


@pytest.mark.parametrize("side", [28, 32])
def test_49_images_stay_49(side):
    """49 · 128·8·8 values would also make 64 rows of 128·7·7."""
    model = CNN((64, 128), (1000,), 10, pool=True, padding="SAME")
    images = jax.ShapeDtypeStruct((49, side, side, 3), jnp.float32)
    logits, _ = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x), images)
    assert logits.shape == (49, 10)


@pytest.mark.parametrize("side", [6, 7])
def test_max_pool_takes_the_maximum_of_each_window(side):
    x_BHWC = np.random.default_rng(0).normal(size=(2, side, side, 3)).astype(np.float32)
    pooled = max_pool(jnp.asarray(x_BHWC))
    expected = np.stack(
        [
            np.stack([x_BHWC[:, r : r + 2, c : c + 2].max((1, 2)) for c in range(0, 6, 2)], 1)
            for r in range(0, 6, 2)
        ],
        1,
    )
    np.testing.assert_array_equal(pooled, expected)


@pytest.mark.slow
def test_no_example_sees_another():
    """The property that makes the network the same on any number of devices."""
    model = ConvNet(num_classes=3)
    images = jax.random.normal(jax.random.key(0), (4, 14, 14, 1))
    variables = model.init(jax.random.key(1), images)
    alone = model.apply(variables, images[2:3])
    together = model.apply(variables, images)[2:3]
    np.testing.assert_allclose(alone, together, atol=1e-5)


def test_he_initialisation_has_its_standard_deviation():
    model = MLP(hidden=(1000,), num_classes=2)
    kernel = model.init(jax.random.key(0), jnp.zeros((1, 1000)))["params"]["Dense_0"]["kernel"]
    assert kernel.size == 10**6
    assert float(kernel.std()) == pytest.approx((2 / 1000) ** 0.5, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "shape", "value"),
    [  # with ReLU and zeros nothing would move at all
        (MLP((5,), 2, activation=nn.sigmoid), (3,), 0.0),
        (MLP((5,), 2), (3,), 0.1),
        (CNN((4,), (5,), 2), (4, 4, 1), 0.1),
    ],
    ids=["mlp-zeros", "mlp", "cnn"],
)
def test_units_that_start_equal_stay_equal(model, shape, value):
    """Random initial weights are there to tell the units of a layer apart."""

    def spread(model):
        x = jax.random.normal(jax.random.key(0), (6, *shape))
        params = model.init(jax.random.key(1), x)["params"]
        loss_fn, tx = task.classification(model).loss, optimizers.sgd(1.0)
        batch = {"image": x, "label": jnp.int32(jnp.arange(6) < 2), "mask": jnp.ones(6, bool)}

        def body(carry, _):
            params, state = carry
            gradient = jax.grad(lambda p: loss_fn(p, {}, batch, None)[0].compute())(params)
            updates, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        (end, _), _ = jax.lax.scan(body, (params, tx.init(params)), length=20)
        start, end = (np.asarray(tree["Dense_0"]["kernel"]) for tree in (params, end))
        return np.ptp(end, axis=1).max(), np.abs(end - start).max()

    unequal, moved = spread(model.clone(kernel_init=nn.initializers.constant(value)))
    assert unequal < 1e-5
    assert moved > 1e-2
    assert spread(model)[0] > 0.1


@pytest.mark.slow
def test_the_initialiser_of_every_kernel_can_be_chosen_and_is_linens_own_by_default():
    images = jnp.zeros((1, 6, 6, 1))
    ones = CNN((4,), (5,), 2, kernel_init=nn.initializers.ones).init(jax.random.key(0), images)["params"]
    assert {float(value) for layer in ones.values() for value in np.unique(layer["kernel"])} == {1.0}

    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(4, (3, 3), padding="VALID")(x))
            x = nn.relu(nn.Dense(5)(x.reshape(1, -1)))
            return nn.Dense(2)(x)

    key = jax.random.key(7)
    chex.assert_trees_all_equal(CNN((4,), (5,), 2).init(key, images), Plain().init(key, images))
