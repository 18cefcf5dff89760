"""The origin of a NaN: the operation, the line and the layer, forwards, backwards and within loops."""

import dataclasses
import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dl import optimizers, task
from dl.data.permutation import random_order
from dl.data.source import ArraySource
from dl.data.splits import ArraySplits
from dl.errors import UserError
from dl.experiment import Experiment
from dl.runs.console import Console
from dl.sharding import make_mesh
from dl.training.nans import find_nan
from tests.helpers import train_in


class Normalizing(nn.Module):
    """Divides the logits by a feature, which is 0 in one example."""

    @nn.compact
    def __call__(self, x_BF):
        x_BC = nn.Dense(2)(x_BF)
        return Scaled()(x_BC, x_BF[:, :1])


class Scaled(nn.Module):
    @nn.compact
    def __call__(self, x_BC, scale_B1):
        return x_BC * scale_B1 / scale_B1


def line_of(fn, text):
    """Returns `FILE:LINE` of the only line of `fn` that holds `text`."""
    lines, start = inspect.getsourcelines(fn)
    (offset,) = (number for number, line in enumerate(lines) if text in line)
    return f"{__file__}:{start + offset}"


# Three batches of four an epoch, in an order that puts the example whose feature is 0 into the third.
NUM_EXAMPLES, BATCH_SIZE, BAD_STEP = 12, 4, 3


def experiment():
    features = np.random.default_rng(0).normal(size=(NUM_EXAMPLES, 3)).astype(np.float32)
    features[random_order(NUM_EXAMPLES, 0, 0)[(BAD_STEP - 1) * BATCH_SIZE], 0] = 0.0
    points = ArraySource({"features": features, "label": np.int32(features.sum(1) > 0)})
    model = Normalizing()
    return Experiment(
        data=ArraySplits("points", train=points),
        task=task.classification(model, input_name="features"),
        tx=optimizers.sgd(1e-3),
        num_steps=6,
        batch_size=BATCH_SIZE,
    )


@pytest.mark.slow
def test_a_run_ends_with_the_operation_and_the_line_that_made_the_first_nan(tmp_path):
    mesh = make_mesh({"data": BATCH_SIZE})
    with pytest.raises(UserError) as caught:
        train_in(tmp_path / "run", mesh, experiment(), debug_nans=True, save_every=0)
    message = str(caught.value)
    assert message.startswith(f"step {BAD_STEP} made the first NaN: div of ")
    assert line_of(Scaled, "/ scale") in message
    assert "`return x_BC * scale_B1 / scale_B1`" in message
    assert "in the layer Scaled_0" in message
    assert "\n" not in message
    saved = [int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit()]
    assert sorted(saved) == [BAD_STEP - 2, BAD_STEP - 1]


@pytest.mark.slow
def test_without_a_nan_the_bits_are_the_same(tmp_path, mesh1):
    sound = dataclasses.replace(experiment(), num_steps=BAD_STEP - 1)
    digests = {
        train_in(
            tmp_path / str(debug_nans),
            mesh1,
            sound,
            debug_nans=debug_nans,
            console=Console(is_quiet=True),
        )["params_digest"]
        for debug_nans in (False, True)
    }
    assert len(digests) == 1


def test_without_the_option_the_message_names_it(tmp_path, mesh1):
    with pytest.raises(UserError, match=f"nan in step {BAD_STEP} .*--debug-nans"):
        train_in(tmp_path / "run", mesh1, experiment())


def test_a_gradient_is_found_with_the_line_that_it_is_the_gradient_of():
    def norm(x):
        return jnp.sqrt(x * x)  # its derivative at 0 is 0 / 0

    origin = find_nan(jax.grad(norm), jnp.float32(0.0))
    assert (origin.operation, origin.is_backward) == ("mul", True)
    assert origin.place.startswith(line_of(norm, "jnp.sqrt"))
    assert "= inf" in " ".join(origin.inputs)


def test_inside_loops_branches_and_recomputation():
    def body(carry, x):
        carry = jax.checkpoint(lambda c: jnp.log(c))(carry)  # 2, 0.69, -0.37, NaN
        return carry, x

    def branch(x):
        return x + jax.lax.scan(body, x, jnp.arange(3.0))[0]

    def fn(x):
        return jax.lax.cond(x > 1, branch, jnp.cos, x)

    origin = find_nan(jax.jit(fn), jnp.float32(2.0))
    assert origin.operation == "log"
    assert origin.place.startswith(line_of(body, "jnp.log"))
    assert origin.inputs == (f"float32[] = {np.log(np.log(2.0)):.3g}",)


def test_a_nan_that_is_thrown_away_does_not_count():
    def fn(x):
        unused = jnp.log(-x)
        safe = jnp.where(x < 0, unused, x)
        return safe / (x - x) * 0.0 + 1.0

    origin = find_nan(fn, jnp.float32(3.0))
    assert (origin.operation, origin.inputs) == ("mul", ("float32[] = inf", "float32[] = 0"))


def test_where_there_is_none_nothing_is_found():
    assert find_nan(jnp.sin, jnp.float32(1.0)) is None


NAN = np.float32(np.nan)


@jax.custom_vjp
def halved(x):
    return x / 2


halved.defvjp(lambda x: (x / 2, None), lambda _, g: (g * NAN,))


@jax.custom_jvp
def doubled(x):
    return x * 2


doubled.defjvp(lambda primals, tangents: (doubled(*primals), tangents[0] * NAN))


CONSTANTS = {
    "literal": lambda x: x * jnp.nan,
    "returned": lambda x: (x, jnp.float32(jnp.nan)),
    "array": lambda x: (x + np.array([1.0, np.nan], np.float32)).sum(),
    "where": lambda x: jnp.where(x > 0, jnp.nan, x),
    "jit": jax.jit(lambda x: (x, jnp.nan)),
    "scan": lambda x: jax.lax.scan(lambda c, _: (c * NAN, None), x, length=3)[0],
    "while": lambda x: jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] * NAN), (0, x))[1],
    "cond": lambda x: jax.lax.cond(x > 0, lambda x: jnp.float32(jnp.nan), lambda x: x, x),
    "remat": jax.grad(jax.checkpoint(lambda x: x * NAN)),
    "custom_vjp": jax.grad(halved),
    "custom_jvp": jax.grad(doubled),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_constant_is_named_as_the_origin(name):
    origin = find_nan(CONSTANTS[name], jnp.float32(2.0))
    assert origin.given == "a constant"
    assert str(origin).startswith("a constant that holds a NaN, ")
    assert "\n" not in str(origin)


def test_inside_a_while_loop_the_turn_is_found():
    def turn(carry):
        count, x = carry
        return count + 1, jnp.log(x)  # 2, 0.69, -0.37, NaN

    origin = find_nan(lambda x: jax.lax.while_loop(lambda c: c[0] < 5, turn, (0, x))[1], jnp.float32(2.0))
    assert origin.place.startswith(line_of(turn, "jnp.log"))
    assert origin.inputs == (f"float32[] = {np.log(np.log(2.0)):.3g}",)


def of_nan_data():
    sound = experiment()
    features = np.ones((NUM_EXAMPLES, 3), np.float32)
    features[5, 1] = np.nan
    points = ArraySource({"features": features, "label": np.zeros(NUM_EXAMPLES, np.int32)})
    return dataclasses.replace(sound, data=ArraySplits("points", train=points))


def with_tx(update):
    return dataclasses.replace(
        of_sound_data(), tx=optax.stateless(lambda gradient, _: jax.tree.map(update, gradient))
    )


def of_sound_data():
    points = ArraySource(
        {"features": np.ones((NUM_EXAMPLES, 3), np.float32), "label": np.zeros(NUM_EXAMPLES, np.int32)}
    )
    return dataclasses.replace(experiment(), data=ArraySplits("points", train=points))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (of_nan_data, "met the first NaN in the data: the feature features of training examples 5; clean"),
        (
            lambda: with_tx(lambda g: g * jnp.nan),
            "made the first NaN: a constant that holds a NaN, taken by mul",
        ),
        (lambda: with_tx(lambda g: g * 0 / (g * 0)), "made the first NaN: div of "),
    ],
    ids=["data", "constant in the optimizer", "the optimizer"],
)
def test_data_and_optimizer_are_named_too(make, message, tmp_path, mesh1):
    with pytest.raises(UserError, match=message) as caught:
        train_in(tmp_path / "run", mesh1, make(), debug_nans=True, console=Console(is_quiet=True))
    assert "\n" not in str(caught.value)
