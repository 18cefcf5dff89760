"""Formulas and programs of the articles that are wrong: the printed version fails, this house's holds.

Each test quotes what was printed. Vectors here are columns where the articles write W x, rows where the
models compute x W.
"""

import functools
import types

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import expit, logit, softmax

from dl import losses, optimizers, task
from dl.data import steps_per_epoch
from dl.data.carve import split_rows
from dl.data.images.decoding import to_unit_range
from dl.data.images.image_data_generator import image_data_generator
from dl.errors import UserError
from dl.gradients import mean_gradient
from dl.metrics import Mean, accuracy
from dl.models.cnn import CNN
from dl.models.dropout import DropConnectDense
from dl.models.mlp import MLP
from dl.models.mobilenet import MobileNetV2
from dl.models.scaling import identity
from dl.penalties import kernels, l2, with_penalty
from dl.training.state import num_params
from experiments.mlp_342 import experiment as mlp_342
from tests.backpropagation import backpropagate, forward, sigmoid_squared_error

PERCEPTRON = MLP(hidden=(4,), num_classes=2)
MNIST_IMAGES = jax.ShapeDtypeStruct((2, 28, 28, 1), jnp.float32)


def shapes_of(model, images):
    """Returns the shapes of the model's output and of its parameters."""
    output, variables = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x), images)
    return output.shape, variables["params"]


def random_params(model, images, seed=0):
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: random.normal(size=leaf.shape).astype(np.float32), shapes_of(model, images)[1]
    )


# The worked example: three inputs, of which two are used, four hidden units and two outputs.

W1 = np.array([[3.0, 0, 0], [2, 0, 0], [0, 3, 0], [0, 2, 0]])
W2 = np.array([[4.0] * 4, [2.0] * 4])
EXAMPLE = {
    "Dense_0": {"kernel": W1.T, "bias": np.array([2.0, 1, 0, 0])},
    "Dense_1": {"kernel": W2.T, "bias": np.array([3.0, 1])},
}
X = np.array([[0.0, 1, 1]])
Z1 = np.array([2.0, 1, 3, 2])
PRINTED_A1 = np.array([0.0, 1, 3, 2])

# A perceptron whose hidden units are not all active and whose outputs do not saturate.
RANDOM = np.random.default_rng(4)
PARAMS = {
    "Dense_0": {"kernel": RANDOM.normal(size=(3, 4)), "bias": RANDOM.normal(size=4)},
    "Dense_1": {"kernel": RANDOM.normal(size=(4, 2)), "bias": RANDOM.normal(size=2)},
}
PARAMS = jax.tree.map(np.float32, PARAMS)
FEATURES = np.array([[0.5, -1.2, 0.8]], np.float32)


@jax.jit
def squared_error(params, target_BC):
    """The loss of the articles' perceptron: ½ Σ (sigmoid(z²) - target)²."""
    y_BC = nn.sigmoid(PERCEPTRON.apply({"params": params}, jnp.asarray(FEATURES)))
    return losses.half_squared_error(y_BC, jnp.asarray(target_BC, jnp.float32)).mean()


gradient_of_squared_error = jax.jit(jax.grad(squared_error))


def test_relu_of_2_is_2():
    """Printed: a¹ = ReLU((2, 1, 3, 2)) = (0, 1, 3, 2)."""
    z1 = nn.Dense(4).apply({"params": EXAMPLE["Dense_0"]}, X)[0]
    np.testing.assert_array_equal(z1, Z1)
    np.testing.assert_array_equal(nn.relu(z1), [2, 1, 3, 2])
    assert (nn.relu(z1) != PRINTED_A1).any()


def test_no_reading_of_the_second_layer_gives_17_and_5():
    """Printed: z² = (4·a¹ + 3, 2·a¹ + 1) = (17, 5), with a vector a¹."""
    np.testing.assert_allclose(PERCEPTRON.apply({"params": EXAMPLE}, X), [[35, 17]], rtol=1e-6)
    readings = {
        (4 * read(a1) + 3, 2 * read(a1) + 1) for a1 in (Z1, PRINTED_A1) for read in (np.sum, np.mean, np.max)
    }
    assert {(35, 17), (27, 13), (11, 5), (9, 4)} <= readings
    assert (17, 5) not in readings


def test_the_sigmoid_of_17_and_5():
    """Printed: sigmoid((17, 5)) = (0.9, 0.7)."""
    y = nn.sigmoid(jnp.array([17.0, 5.0]))
    np.testing.assert_allclose(y, [0.99999996, 0.9933071], atol=1e-7)
    np.testing.assert_allclose(y, expit([17, 5]), atol=1e-7)
    np.testing.assert_allclose(logit([0.9, 0.7]), [2.197, 0.847], atol=1e-3)


def test_the_jacobian_of_relu_is_diagonal():
    """Printed: ReLU'(z¹), a 4×4 matrix with an empty column, ones off the diagonal and a row twice."""
    printed = np.array([[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 1]])
    for z1 in (Z1, np.array([2.0, -1, 3, -2])):
        jacobian = jax.jacobian(nn.relu)(jnp.asarray(z1))
        np.testing.assert_array_equal(jacobian, np.diag(z1 > 0))
        assert (jacobian != printed).any()


def test_the_jacobian_of_a_layer_contains_the_derivative_of_its_activation():
    """Printed: ∂z²/∂z¹ = W²."""
    z1 = jnp.array([2.0, -1, 3, -2])
    jacobian = jax.jacobian(lambda z: nn.Dense(2).apply({"params": EXAMPLE["Dense_1"]}, nn.relu(z)))(z1)
    np.testing.assert_allclose(jacobian, W2 @ np.diag([1, 0, 1, 0]))
    assert (jacobian != W2).any()


def test_an_update_without_a_loss_learns_no_target():
    """Printed: W² := W² - α · ∂z²/∂W² · ∂ŷ/∂z², in which neither the target nor the loss appears."""
    a1 = np.maximum(FEATURES @ PARAMS["Dense_0"]["kernel"] + PARAMS["Dense_0"]["bias"], 0)
    y = expit(a1 @ PARAMS["Dense_1"]["kernel"] + PARAMS["Dense_1"]["bias"])
    printed = a1.T @ (y * (1 - y))
    for target, is_descent in ((np.ones((1, 2)), False), (np.zeros((1, 2)), True)):
        gradient = gradient_of_squared_error(PARAMS, target)
        by_hand = backpropagate(PARAMS, FEATURES, target, sigmoid_squared_error)
        for layer in ("Dense_0", "Dense_1"):
            for name in ("kernel", "bias"):
                np.testing.assert_allclose(gradient[layer][name], by_hand[layer][name], atol=1e-6)
        assert abs(gradient["Dense_1"]["kernel"] - printed).max() > 0.01
        moved = {
            **PARAMS,
            "Dense_1": {**PARAMS["Dense_1"], "kernel": PARAMS["Dense_1"]["kernel"] - 0.1 * printed},
        }
        assert (squared_error(moved, target) < squared_error(PARAMS, target)) == is_descent
        descended = jax.tree.map(lambda p, g: p - 0.1 * g, PARAMS, gradient)
        assert squared_error(descended, target) < squared_error(PARAMS, target)


def test_the_update_of_the_first_layer_needs_the_weights_of_the_second():
    """Printed: W¹ := W¹ - α · ∂z¹/∂a · ∂z¹/∂W¹ · ∂ŷ/∂z²; a 4×4 matrix, three inputs, two outputs."""
    with pytest.raises(ValueError, match="mismatch"):
        np.eye(4) @ FEATURES[0] * np.ones(2)
    target = np.array([[1.0, 0.0]])
    other = {**PARAMS, "Dense_1": {**PARAMS["Dense_1"], "kernel": -PARAMS["Dense_1"]["kernel"]}}
    first, second = (gradient_of_squared_error(p, target)["Dense_0"]["kernel"] for p in (PARAMS, other))
    assert first.shape == PARAMS["Dense_0"]["kernel"].shape
    assert abs(first - second).max() > 0.01


def test_one_orientation_of_the_weights_holds():
    """Printed: y = f(Wᵀ a + b) and, a section later, z = W a + b, of the same W."""
    kernel, a = np.ones((3, 4), np.float32), FEATURES[0]
    y = nn.Dense(4).apply({"params": {"kernel": kernel, "bias": np.zeros(4)}}, a)
    np.testing.assert_allclose(y, kernel.T @ a, rtol=1e-6)
    with pytest.raises(ValueError, match="mismatch"):
        kernel @ a


# Backpropagation as printed for many layers.


def test_the_error_of_the_output_has_the_sign_of_the_gradient():
    """Printed: δ = (y - ŷ) ⊙ σ'(z), with θ := θ - α ∇J."""
    target = np.array([[1.0, 0.0]])
    gradient = gradient_of_squared_error(PARAMS, target)
    printed = backpropagate(PARAMS, FEATURES, target, lambda z, y: -sigmoid_squared_error(z, y))
    start = squared_error(PARAMS, target)
    climbed, fallen = (
        squared_error(jax.tree.map(lambda p, g: p - 0.1 * g, PARAMS, step), target)
        for step in (printed, gradient)
    )
    assert climbed > start > fallen


def test_the_gradient_of_a_kernel_is_an_outer_product():
    """Printed: ∇J = Σ δ ⊙ x."""
    model = MLP((), 3)
    target = np.array([[1.0, 0, 0]], np.float32)
    params = random_params(model, FEATURES)

    @jax.jit
    def loss(params):
        return losses.cross_entropy(model.apply({"params": params}, FEATURES), target).mean()

    delta = softmax(FEATURES @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]) - target
    gradient = jax.grad(loss)(params)["Dense_0"]["kernel"]
    np.testing.assert_allclose(gradient, np.outer(FEATURES, delta), atol=1e-6)
    assert (delta * FEATURES)[0].shape != gradient.shape  # as many inputs as outputs: a vector
    with pytest.raises(ValueError, match="broadcast"):
        delta[0, :2] * FEATURES[0]  # otherwise: nothing


@pytest.mark.slow
def test_a_layer_reads_the_one_below_it():
    """Printed, for every layer l: z = Σ w x + b, and ∇J = Σ δ ⊙ x, with x the input of the network."""
    model, target = MLP((3,), 2), np.array([[1.0, 0.0]], np.float32)
    params = random_params(model, FEATURES)
    _, a1, z = forward(params, FEATURES)
    np.testing.assert_allclose(model.apply({"params": params}, FEATURES), z, atol=1e-5)
    printed = FEATURES @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"]
    assert abs(printed - z).max() > 0.1

    @jax.jit
    def loss(params):
        return losses.cross_entropy(model.apply({"params": params}, FEATURES), target).mean()

    delta = softmax(z) - target
    gradient = jax.grad(loss)(params)["Dense_1"]["kernel"]
    np.testing.assert_allclose(gradient, np.outer(a1, delta), atol=1e-6)
    assert abs(np.outer(FEATURES, delta) - gradient).max() > 0.1


def test_the_error_of_cross_entropy_has_no_derivative_of_the_output_function():
    """Printed for squared error, beside a program that minimises cross-entropy: δ = (ŷ - y) · f'(z)."""
    z, target = jnp.array([[2.0, -1.0, 0.5]]), jnp.array([[0.0, 1, 0]])
    y = softmax(np.asarray(z))
    delta = jax.grad(lambda z: losses.cross_entropy(z, target).sum())(z)
    np.testing.assert_allclose(delta, y - target, atol=1e-6)
    assert abs((y - target) * y * (1 - y) - delta).max() > 0.1


def test_an_input_layer_has_no_weights():
    """Printed: "update the weights and biases of the hidden layer and the input layer", of three layers."""
    _, params = shapes_of(PERCEPTRON, jax.ShapeDtypeStruct((1, 3), jnp.float32))
    assert {name: layer["kernel"].shape for name, layer in params.items()} == {
        "Dense_0": (3, 4),
        "Dense_1": (4, 2),
    }


# Losses.


def test_sparse_cross_entropy_is_no_loss_of_sigmoid_outputs():
    """Printed: SparseCategoricalCrossentropy() of sigmoid(z)."""
    z, label = jnp.array([[30.0, 15.0]]), jnp.array([1])
    p = nn.sigmoid(z)
    assert float(p.sum()) > 1.99  # no distribution
    assert -np.log(p[0, 1]) < 1e-6  # by its formula a wrong answer is free

    def as_keras_computes_it(z):
        p = nn.sigmoid(z)
        return -jnp.log(p / p.sum())[0, 1]

    loss, gradient = jax.jit(jax.value_and_grad(as_keras_computes_it))(z)
    assert loss == pytest.approx(np.log(2))  # and normalised, any two saturated outputs are a coin
    assert abs(gradient).max() < 1e-6
    for right in (
        lambda z: losses.cross_entropy(z, label)[0],
        lambda z: losses.binary_cross_entropy(z, jax.nn.one_hot(label, 2))[0],
    ):
        loss, gradient = jax.jit(jax.value_and_grad(right))(z)
        assert loss > 14
        assert abs(gradient).max() > 0.99


@pytest.mark.parametrize("y_hat", [0.1, 0.999])
def test_binary_cross_entropy_has_two_halves(y_hat):
    """Printed: -Σ y log ŷ, y being 0 or 1."""
    y = np.array([[0.0]])
    assert -(y * np.log(y_hat)).sum() == 0
    loss = losses.binary_cross_entropy(jnp.array([[logit(y_hat)]], jnp.float32), y)
    np.testing.assert_allclose(loss, [-np.log1p(-y_hat)], rtol=1e-4)  # 0.10536 for 0.1


def test_a_penalty_weighs_the_same_whatever_the_number_of_examples():
    """Printed: J = Σ (y - ŷ)² + λ Σ θ², without 1/n and over biases too."""
    model = MLP((), 1)
    x = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    params = {"Dense_0": {"kernel": np.ones((3, 1), np.float32), "bias": np.ones(1, np.float32)}}
    once = {"image": x, "target": x[:, 0], "mask": np.ones(6, bool)}
    twice = jax.tree.map(lambda leaf: np.concatenate([leaf, leaf]), once)

    def printed(params, batch):
        errors = model.apply({"params": params}, batch["image"])[:, 0] - batch["target"]
        return (errors**2).sum() + 0.1 * sum((leaf**2).sum() for leaf in jax.tree.leaves(params))

    ours = with_penalty(task.regression(model), l2(0.1))
    gradients = [
        jax.jit(jax.grad(loss)) for loss in (lambda p, b: ours.loss(p, {}, b, None)[0].compute(), printed)
    ]
    right, wrong = ([gradient(params, batch) for batch in (once, twice)] for gradient in gradients)
    np.testing.assert_allclose(*(g["Dense_0"]["kernel"] for g in right), atol=1e-6)
    direction = [g["Dense_0"]["kernel"] / np.linalg.norm(g["Dense_0"]["kernel"]) for g in wrong]
    assert abs(direction[0] - direction[1]).max() > 1e-3
    assert kernels(params)["Dense_0"] == {"kernel": True, "bias": False}


# Optimizers.


def parameters_after(tx, start, gradients):
    params, state = jnp.float32(start), tx.init(jnp.float32(start))
    places = []
    for gradient in gradients:
        updates, state = tx.update(jnp.full_like(params, gradient), state, params)
        params = optax.apply_updates(params, updates)
        places.append(np.asarray(params))
    return np.array(places)


def test_adam_averages_gradients():
    """Printed: m = β₁ x_t + (1 - β₁)(x_t - x_{t-1}), v likewise of y, and no correction of the bias."""
    gradients = np.array([1.0, 1, 1, -1, -1])
    before = np.append(gradients[:1], gradients[:-1])
    v = 0.999 * gradients + 0.001 * (gradients - before)
    assert v[3] == pytest.approx(-1.001)
    with np.errstate(invalid="ignore"):
        assert np.isnan(np.sqrt(v[3]))
    squares = 0.999 * gradients**2 + 0.001 * (gradients**2 - before**2)
    np.testing.assert_allclose(squares, 0.999)  # of squares: no average, the last one alone

    places = parameters_after(optimizers.adam(1.0, eps=0.0), np.zeros((1, 1)), gradients)
    steps = -np.diff(places.ravel(), prepend=0.0)
    np.testing.assert_allclose(steps, [1, 1, 1, 0.4184, 0.0721], atol=1e-4)


def test_adamw_is_no_adam_with_l2():
    """Printed: AdamW is "Adam with weighted L2 regularisation"."""
    start = np.array([[1.0, 10.0]])
    decoupled = parameters_after(optimizers.adamw(0.1, weight_decay=0.5), start, [0.0] * 5)
    np.testing.assert_allclose(decoupled, start[None] * 0.95 ** np.arange(1, 6)[:, None, None], rtol=1e-5)
    # Adam divides the penalty by its own size: every weight loses the rate, however large it is.
    printed = optax.chain(optax.add_decayed_weights(0.5), optimizers.adam(0.1))
    np.testing.assert_allclose(parameters_after(printed, start, [0.0])[0], start - 0.1, rtol=1e-5)


def test_stochastic_gradient_descent_sees_a_part_of_the_batch():
    """Printed: θ := θ - α ∇J(θ), the same line for SGD and for batch gradient descent."""
    model = MLP((), 2)
    x = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    batch = {"image": x, "label": np.arange(10) % 2, "mask": np.ones(10, bool)}
    params = random_params(model, x)
    gradient = jax.jit(
        lambda batch: mean_gradient(task.classification(model).loss)(params, {}, batch, None)[1]
    )
    full = np.asarray(gradient(batch)["Dense_0"]["kernel"])
    singles = np.stack(
        [gradient({**batch, "mask": np.arange(10) == i})["Dense_0"]["kernel"] for i in range(10)]
    )
    assert abs(singles - full).max((1, 2)).min() > 0.01  # no single example moves as the batch does
    np.testing.assert_allclose(singles.mean(0), full, atol=1e-6)  # but on average they do


# Regularisers and compression.


def test_drop_connect_drops_nothing_in_evaluation():
    """Printed: DropConnect drops connections "in training and in testing"."""
    module, kernel = DropConnectDense(3, 0.5, use_bias=False), np.ones((3, 3), np.float32)

    @functools.partial(jax.jit, static_argnums=1)
    def apply(key, train):
        return module.apply({"params": {"kernel": kernel}}, FEATURES, train=train, rngs={"dropout": key})

    printed, ours = ([apply(jax.random.key(k), train) for k in range(2)] for train in (True, False))
    assert (printed[0] != printed[1]).any()  # two answers to one question
    np.testing.assert_array_equal(*ours)
    np.testing.assert_allclose(ours[0], FEATURES @ kernel, atol=1e-6)


def test_pruning_removes_weights():
    """Printed: pruned weight = weight · probability of pruning."""
    w = np.random.default_rng(0).normal(size=1000)
    assert np.count_nonzero(w * 0.9) == 1000
    pruned = w * (abs(w) > np.sort(abs(w))[899])
    assert np.count_nonzero(pruned) == 100
    assert abs(pruned[pruned != 0]).min() >= abs(w[pruned == 0]).max()


def test_distillation_hands_over_outputs_not_weights():
    """Printed: "the weights and the knowledge of the large model are passed to the small one"."""
    student, teacher = MLP((4,), 3), MLP((16,), 3)
    params = [random_params(model, FEATURES) for model in (student, teacher)]
    with pytest.raises(flax.errors.ScopeParamShapeError):
        student.apply({"params": params[1]}, FEATURES)
    z_student, z_teacher = (
        m.apply({"params": p}, FEATURES) for m, p in zip((student, teacher), params, strict=True)
    )
    pull = jax.jit(jax.grad(lambda z: losses.cross_entropy(z, nn.softmax(z_teacher)).sum()))(z_student)
    np.testing.assert_allclose(pull, softmax(z_student) - softmax(z_teacher), atol=1e-6)


# Programs.

UNDEFINED = {
    # Printed: a loop over `data_loader`, which nothing makes; two articles do so.
    "data_loader": "for x, y in data_loader:\n    backward(x, y)",
    "train_loader": "for data, target in train_loader:\n    optimizer.zero_grad()",
    # Printed: the loss of `y_pred`, which is local to another function.
    "y_pred": "def backward(x, y):\n    y_pred = x\nbackward(0, 0)\nprint(loss_fn(0, y_pred))",
    # Printed: `F.relu` without an import of F.
    "F": "class Net:\n    def forward(self, x):\n        return F.relu(x)\nNet().forward(0)",
    # Printed: inputs moved to a `device` that was never chosen.
    "device": "inputs, labels = inputs.to(device), labels.to(device)",
}


@pytest.mark.parametrize("name", UNDEFINED)
def test_a_name_that_is_never_defined_stops_the_program(name):
    """Ours are run by test_experiments."""
    tensor = types.SimpleNamespace(to=print)
    with pytest.raises(NameError, match=f"name '{name}' is not defined"):
        exec(UNDEFINED[name], {"loss_fn": print, "inputs": tensor, "labels": tensor})


def test_a_thousand_epochs_from_0_do_not_print_the_thousandth():
    """Printed: `for epoch in range(1000): if epoch % 100 == 0: print`, and a line for epoch 1000."""
    printed = [epoch for epoch in range(1000) if epoch % 100 == 0]
    assert len(printed) == 10
    assert 1000 not in printed
    ours = mlp_342()  # evaluates before the first step and after every hundredth
    assert ours.eval_at_start
    assert ours.num_steps == 1000
    assert ours.num_steps % ours.eval_every == 0


class PrintedConvolution(nn.Module):
    """Printed: Conv2D(32, 3×3), Dense(128), Dense(10), with nothing to flatten between them."""

    @nn.compact
    def __call__(self, image_BHWC):
        x_BHWC = nn.relu(nn.Conv(32, (3, 3), padding="VALID")(image_BHWC))
        return nn.Dense(10)(nn.relu(nn.Dense(128)(x_BHWC)))


def test_without_a_flatten_every_pixel_is_classified():
    shape, params = shapes_of(PrintedConvolution(), MNIST_IMAGES)
    assert shape == (2, 26, 26, 10)
    assert num_params(params) == 5_834
    batch = {"image": jnp.zeros((2, 28, 28, 1)), "label": jnp.zeros(2, int), "mask": jnp.ones(2, bool)}
    with pytest.raises(UserError, match=r"got \(2, 26, 26, 10\); is a flatten"):
        jax.eval_shape(lambda p: task.classification(PrintedConvolution()).loss(p, {}, batch, None), params)
    shape, params = shapes_of(CNN((32,), (128,), 10), MNIST_IMAGES)
    assert shape == (2, 10)
    assert num_params(params) == 2_770_634


class Views(nn.Module):
    """Printed: `x = x.view(-1, 128 * 7 * 7)` and `x.view(-1, 64 * 4 * 4)`: as many rows as come out."""

    width: int

    @nn.compact
    def __call__(self, x_BHWC):
        return nn.Dense(10)(x_BHWC.reshape(-1, self.width))


@pytest.mark.parametrize(
    ("model", "side", "channels", "feature_shape", "width", "batch", "rows"),
    [
        (CNN((64, 128), (1000,), 10, pool=True, padding="SAME"), 32, 3, (8, 8, 128), 128 * 7 * 7, 49, 64),
        (CNN((32, 64), (512,), 10, pool=True), 28, 1, (5, 5, 64), 64 * 4 * 4, 64, 100),
        (CNN((32, 64), (512,), 10, pool=True), 28, 1, (5, 5, 64), 64 * 4 * 4, 32, 50),
    ],
    ids=["49-to-64", "64-to-100", "32-to-50"],
)
def test_a_view_of_unknown_rows_changes_the_batch(model, side, channels, feature_shape, width, batch, rows):
    features = jax.ShapeDtypeStruct((batch, *feature_shape), jnp.float32)
    shape, params = shapes_of(Views(width), features)
    assert shape == (rows, 10)
    loss_fn = task.classification(Views(width)).loss
    rest = {"label": jnp.zeros(batch, int), "mask": jnp.ones(batch, bool)}
    with pytest.raises(UserError, match=f"{rows} rows of logits from {batch} examples"):
        jax.eval_shape(lambda p, x: loss_fn(p, {}, {"image": x, **rest}, None), params, features)

    images = jax.ShapeDtypeStruct((batch, side, side, channels), jnp.float32)
    shape, params = shapes_of(model, images)
    assert shape == (batch, 10)
    assert params["Dense_0"]["kernel"].shape[0] == np.prod(feature_shape) != width


def test_no_set_of_28_pixels_has_three_channels():
    """Printed: Conv2d(3, 64) before a layer that needs 28×28 images; MNIST has one channel."""
    model = CNN((4,), (8,), 10, pool=True, padding="SAME")
    _, params = shapes_of(model, jax.ShapeDtypeStruct((1, 28, 28, 3), jnp.float32))
    with pytest.raises(flax.errors.ScopeParamShapeError):
        jax.eval_shape(model.apply, {"params": params}, jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32))


def test_a_tenth_of_train_is_54000_and_6000():
    """Printed: "Train on 60000 samples, validate on 10000 samples", of `validation_split=0.1`."""
    rows = split_rows("mnist", {"train": 60_000, "test": 10_000}, 0.1)
    sizes = {used: official if taken is None else len(taken) for used, (official, taken) in rows.items()}
    assert sizes == {"train": 54_000, "validation": 6_000, "test": "test"}
    assert not {*rows["train"][1].tolist()} & {*rows["validation"][1].tolist()}
    assert steps_per_epoch(54_000, 128) == 422


def test_the_test_split_is_not_what_training_was_stopped_by():
    """Printed: `model.evaluate(validation_generator)`, called the test, after early stopping on the same."""
    rows = split_rows("folders", {"train": 2_000, "validation": 1_000}, 0.1)
    assert rows["test"] == ("validation", None)
    assert rows["validation"][0] == "train"
    assert len(rows["validation"][1]) == 200


def test_the_loss_of_the_last_batch_is_not_the_loss_of_the_epoch():
    """Printed: `print(f"Epoch {epoch+1}, Loss: {loss.item()}")` after the loop over the batches."""
    loss_B = np.random.default_rng(0).exponential(size=1000).astype(np.float32)
    batches = [loss_B[start : start + 64] for start in range(0, 1000, 64)]
    assert len(batches[-1]) == 40
    epoch = Mean.of(batches[0])
    for batch in batches[1:]:
        epoch = epoch.merge(Mean.of(batch))
    assert epoch.compute() == pytest.approx(loss_B.mean(), rel=1e-5)
    assert abs(batches[-1].mean() - loss_B.mean()) > 0.01
    assert abs(np.mean([batch.mean() for batch in batches]) - loss_B.mean()) > 1e-4  # nor the mean of batches


def test_mobilenet_expects_pixels_from_minus_one_to_one():
    """Printed: `rescale=1./255` before MobileNetV2, whose weights are of x / 127.5 - 1."""
    stored = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    ours = MobileNetV2(None, width=0.1, stages=(), features=8)
    bare = ours.clone(scaling=identity)
    image = to_unit_range({"image": jnp.asarray(stored)})["image"]
    statistics = jax.eval_shape(ours.init, jax.random.key(0), image)["batch_stats"]
    variables = {
        "params": random_params(ours, image),
        "batch_stats": jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), statistics),
    }
    features = jax.jit(ours.apply)(variables, image)
    apply = jax.jit(bare.apply)
    expected, printed = (apply(variables, jnp.float32(x)) for x in (stored / 127.5 - 1, stored / 255))
    np.testing.assert_allclose(features, expected, atol=1e-5)
    assert abs(printed - expected).max() > 0.05


def test_the_generator_crops_nothing():
    """Printed: "random rotation, scaling, cropping and so on", of an ImageDataGenerator."""
    with pytest.raises(TypeError, match="crop"):
        image_data_generator(crop=0.2)
    as_printed = image_data_generator(
        rescale=1 / 255,
        rotation_range=40,
        width_shift_range=0.2,
        height_shift_range=0.2,
        shear_range=0.2,
        zoom_range=0.2,
        horizontal_flip=True,
        fill_mode="nearest",
    )
    example = {"image": jax.ShapeDtypeStruct((16, 12, 3), jnp.float32)}
    assert jax.eval_shape(as_printed, jax.random.key(0), example)["image"].shape == (16, 12, 3)


# Figures that cannot have been measured.


def is_possible(figure, num_examples):
    """Says whether some number of right answers, divided by the examples, is written as `figure`."""
    counts = np.arange(num_examples + 1)
    return figure in np.round(counts / num_examples, 4)


@pytest.mark.parametrize(
    ("figure", "num_examples"),
    [  # Printed: accuracies of 2,000 and 1,000 images, and of the 6,000 that a tenth of MNIST is.
        *((figure, 2_000) for figure in (0.1233, 0.2004, 0.5583, 0.5656)),
        *((figure, 1_000) for figure in (0.2245, 0.5735, 0.5773)),
        (0.9789, 6_000),
    ],
)
def test_an_accuracy_is_a_whole_number_of_examples(figure, num_examples):
    assert not is_possible(figure, num_examples)
    logits_BC = np.random.default_rng(0).normal(size=(6_000, 10))
    measured = accuracy(jnp.asarray(logits_BC), np.arange(6_000) % 10, np.arange(6_000) < num_examples)
    assert measured.count == num_examples
    assert measured.total == int(measured.total)
    assert is_possible(np.round(int(measured.total) / num_examples, 4), num_examples)


def test_patience_cannot_run_out_while_the_loss_falls():
    """Printed: EarlyStopping(patience=10) ends at epoch 91 of 100, after losses 1.4703 and 1.4495."""

    def stops_after(losses, patience=10):
        best = np.minimum.accumulate(losses)
        since_best = np.arange(len(losses)) - np.searchsorted(-best, -best)
        return next((epoch for epoch, waited in enumerate(since_best, 1) if waited >= patience), None)

    falling = np.interp(np.arange(1, 92), [1, 2, 90, 91], [2.2025, 2.1267, 1.4703, 1.4495])
    assert stops_after(falling) is None
    stopped = [*falling[:81], *np.full(19, falling[80] + 0.01)]
    assert stops_after(stopped) == 91
    assert stopped[90] > min(stopped)  # and without `restore_best_weights` the best are lost
