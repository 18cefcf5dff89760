import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dl import optimizers
from dl.data.pipeline import Batches
from dl.data.source import ArraySource
from dl.data.splits import ArraySplits
from dl.diagnostics.learning_rate_finder import RateTest, find_learning_rate, plot_rates
from dl.errors import UserError
from dl.experiment import Experiment
from dl.metrics import Mean
from dl.task import Task
from dl.types import Aux

random = np.random.default_rng(0)
X_ND = random.normal(size=(24, 3)).astype(np.float32)
Y_N = (X_ND @ np.array([1.0, -2.0, 0.5]) + 0.1 * random.normal(size=24)).astype(np.float32)
BATCH_SIZE = 8


def squared_error(params, model_state, batch, key):
    loss_B = (batch["x"] @ params["w"][:, 0] - batch["y"]) ** 2
    return Mean.of(loss_B, batch["mask"]), Aux(model_state, {})


def experiment(tx):
    return Experiment(
        data=ArraySplits("line", train=ArraySource({"x": X_ND, "y": Y_N})),
        task=Task(lambda key, batch: {"params": {"w": jnp.ones((3, 1))}}, squared_error),
        tx=tx,
        num_steps=20,
        batch_size=BATCH_SIZE,
    )


def by_hand(rates, update, mesh):
    """Returns the losses of a loop in NumPy; `update(w, gradient, rate, step)` is the optimizer."""
    batches = Batches(experiment(optimizers.sgd(1.0)).data.train, BATCH_SIZE, mesh, seed=0)
    w, found = np.ones(3), []
    for step, rate in enumerate(rates):
        rows, _ = batches.rows(step)
        error = X_ND[rows] @ w - Y_N[rows]
        found.append((error**2).mean())
        w = update(w, 2 * X_ND[rows].T @ error / BATCH_SIZE, rate, step)
    return found


def gradient_descent(w, gradient, rate, step):
    return w - rate * gradient


class AdamW:
    """Loshchilov & Hutter 2019, algorithm 2."""

    def __init__(self, weight_decay):
        self.m, self.v, self.weight_decay = 0.0, 0.0, weight_decay

    def __call__(self, w, gradient, rate, step):
        self.m = 0.9 * self.m + 0.1 * gradient
        self.v = 0.999 * self.v + 0.001 * gradient**2
        m, v = self.m / (1 - 0.9 ** (step + 1)), self.v / (1 - 0.999 ** (step + 1))
        return w - rate * (m / (np.sqrt(v) + 1e-8) + self.weight_decay * w)


class Lars:
    """You et al. 2017, algorithm 1: the rate acts inside the velocity."""

    def __init__(self):
        self.velocity = 0.0

    def __call__(self, w, gradient, rate, step):
        trust = 0.1 * np.linalg.norm(w) / np.linalg.norm(gradient)
        self.velocity = 0.9 * self.velocity + rate * trust * gradient
        return w - self.velocity


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tx", "update"),
    [
        (optimizers.sgd(7.0), gradient_descent),
        # A rate that is 0 from the fifth step on, and one that would fall on a plateau.
        (optimizers.sgd(optimizers.cosine(7.0, 5)), gradient_descent),
        (optimizers.sgd(optimizers.plateau(7.0, patience=1)), gradient_descent),
        (optimizers.adamw(optimizers.cosine(7.0, 10, warmup_steps=3), weight_decay=0.1), AdamW(0.1)),
        (optimizers.lars(7.0, trust_coefficient=0.1, weight_decay=0.0), Lars()),
    ],
    ids=["sgd", "cosine", "plateau", "adamw", "lars"],
)
def test_losses_and_rates_are_those_of_a_loop_by_hand(tx, update, mesh1):
    test = find_learning_rate(experiment(tx), low=1e-3, high=0.05, num_steps=20)
    np.testing.assert_allclose(test.rates, np.geomspace(1e-3, 0.05, 20), rtol=1e-12)
    np.testing.assert_allclose(test.losses, by_hand(test.rates, update, mesh1), rtol=2e-4)
    assert not test.has_diverged


def test_the_average_is_corrected_for_its_start_and_an_explosion_ends_the_test():
    test = find_learning_rate(experiment(optimizers.sgd(0.1)), low=1e-4, high=1e3, num_steps=60)
    weights = 0.9 ** np.arange(len(test.losses))[::-1]
    for end in (1, 2, len(test.losses)):
        average = np.average(test.losses[:end], weights=weights[-end:])
        assert test.smoothed[end - 1] == pytest.approx(average, rel=1e-6)
    assert test.has_diverged
    assert test.smoothed[-1] > 4 * test.smoothed.min()
    assert (test.smoothed[:-1] <= 4 * np.minimum.accumulate(test.smoothed[:-1])).all()
    # Gradient descent on a quadratic is stable up to 2 / the largest curvature.
    stable = 2 / np.linalg.eigvalsh(2 * X_ND.T @ X_ND / len(X_ND)).max()
    assert test.low <= test.suggested < test.high
    assert test.suggested < stable < test.rates[-1]


def test_a_loss_that_never_falls_gets_no_suggestion():
    def rising(params, model_state, batch, key):
        # The value rises with the step; its gradient has nothing to do with it.
        return Mean.of(params["w"].sum()), Aux(model_state, {"loss": Mean.of(-params["w"].sum()[None])})

    climbing = Experiment(
        data=experiment(optimizers.sgd(1.0)).data,
        task=Task(lambda key, batch: {"params": {"w": jnp.zeros((3, 1))}}, rising),
        tx=optimizers.sgd(1.0),
        num_steps=20,
        batch_size=BATCH_SIZE,
    )
    test = find_learning_rate(climbing, low=1e-3, high=1e-2, num_steps=20)
    assert (test.suggested, test.low, test.high) == (None, None, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"low": 1.0, "high": 0.1}, "low=1 is not smaller than high=0.1"),
        ({"low": 0.1, "high": 0.1}, "low=0.1 is not smaller than high=0.1"),
        ({"low": 0.0}, "low=0.0 is out of range"),
        ({"low": -1.0}, "low=-1.0 is out of range"),
        ({"low": math.nan}, "low=nan is out of range"),
        ({"high": math.inf}, "high=inf is out of range"),
        ({"num_steps": 1}, "steps=1 is too small"),
        ({"num_steps": 0}, "steps=0 is out of range"),
        ({"num_steps": 5}, "steps=5 is too small"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    with pytest.raises(UserError, match=message):
        find_learning_rate(experiment(optimizers.sgd(0.1)), **arguments)


def of_value(value):
    """Returns an experiment whose loss is a function of the sum of its parameters."""

    def loss_fn(params, model_state, batch, key):
        total = params["w"].sum()
        return Mean.of(total), Aux(model_state, {"loss": Mean.of((0 * total + value(total))[None])})

    return dataclasses.replace(
        experiment(optimizers.sgd(1.0)),
        task=Task(lambda key, batch: {"params": {"w": jnp.zeros((3, 1))}}, loss_fn),
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_before_any_update_leaves_nothing_to_judge(value, tmp_path):
    test = find_learning_rate(of_value(lambda total: value), num_steps=20)
    assert (len(test.rates), test.has_diverged, test.suggested) == (0, True, None)
    plot_rates(test, "a title").savefig(tmp_path / "plot.png")


def test_a_constant_loss_gets_no_suggestion():
    assert find_learning_rate(of_value(lambda total: 1.0), num_steps=20).suggested is None


def test_a_loss_below_zero_falls_and_explodes_as_others_do(tmp_path):
    test = find_learning_rate(of_value(lambda total: total - 1), low=1e-4, high=1e-1, num_steps=40)
    assert not test.has_diverged
    assert test.suggested is not None
    plot_rates(test, "a title").savefig(tmp_path / "plot.png")


def test_a_rate_that_cannot_be_replaced_is_said():
    with pytest.raises(UserError, match=r"cannot be replaced.*function of dl\.optimizers"):
        find_learning_rate(experiment(optax.inject_hyperparams(optax.sgd)(0.1)))


def test_the_plot_shows_both_curves_and_the_suggestion(tmp_path):
    rates = np.geomspace(1e-3, 1, 30)
    test = RateTest(rates, np.ones(30), np.linspace(1, 0.5, 30), False, 0.1, 0.01, 0.5)
    figure = plot_rates(test, "a title")
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    np.testing.assert_array_equal(axes.lines[1].get_ydata(), test.smoothed)
    assert axes.lines[2].get_xdata()[0] == 0.1
    figure.savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_state_tells_the_replaced_rate_and_keeps_its_structure():
    tx = optimizers.adamw(1e-3)
    params = {"w": jnp.ones((2, 2))}
    state = tx.init(params)
    gradient = {"w": jnp.ones((2, 2))}
    _, replaced = tx.update(gradient, state, params, learning_rate=jnp.float32(0.25))
    assert jax.tree.structure(replaced) == jax.tree.structure(tx.update(gradient, state, params)[1])
    (_, rate), *_ = optax.tree_utils.tree_get_all_with_path(replaced, "learning_rate")
    assert math.isclose(float(rate), 0.25)
