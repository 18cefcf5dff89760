import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl import losses, optimizers, task
from dl.data.source import ArraySource
from dl.data.splits import ArraySplits
from dl.diagnostics.attainable import attainable
from dl.diagnostics.overfit import Overfit, overfit
from dl.errors import UserError
from dl.experiment import Experiment
from dl.methods.mixing import mixup, with_mixing
from dl.metrics import Mean
from dl.models.mlp import MLP
from dl.types import Aux


def splits(features, labels):
    return ArraySplits("points", train=ArraySource({"features": features, "label": np.int32(labels)}))


random = np.random.default_rng(0)
FEATURES = random.normal(size=(40, 3)).astype(np.float32)
LABELS = random.integers(0, 2, 40)  # random: only a model that learns by heart gets these


def experiment(model=None, **changes):
    model = model or MLP(hidden=(64,), num_classes=2, dropout=0.3)
    fields = {
        "data": splits(FEATURES, LABELS),
        "task": task.classification(model, input_name="features"),
        "tx": optimizers.adamw(3e-2, weight_decay=0.01),
        "num_steps": 10,
        "batch_size": 16,
        **changes,
    }
    return Experiment(**fields)


def forbidden(key, example):
    raise AssertionError("augmentation is off here")


@pytest.mark.slow
def test_random_labels_are_learnt_by_heart_in_spite_of_dropout_and_augmentation():
    seen = []
    result = overfit(experiment(augment=forbidden), 300, 1e-3, lambda step, loss: seen.append((step, loss)))
    assert result.has_passed
    assert result.losses[-1] < 1e-3 <= result.losses[-2]
    assert [loss for _, loss in seen] == list(result.losses)
    assert [step for step, _ in seen] == list(range(len(result.losses)))
    assert 0.5 * np.log(2) < result.losses[0] < 2 * np.log(2)
    assert (result.num_examples, result.num_contradictions, list(result.unmoved)) == (16, 0, [])


def squared_error(params, model_state, batch, key):
    loss_B = (batch["features"] @ params["w"] - batch["label"]) ** 2
    return Mean.of(loss_B, batch["mask"]), Aux(model_state, {})


LEAST_SQUARES = experiment(
    task=task.Task(lambda key, batch: {"params": {"w": jnp.zeros(3)}}, squared_error),
    tx=optimizers.sgd(0.1),
    data=splits(FEATURES[:16], LABELS[:16]),  # one batch holds all, in whatever order
)


def test_it_takes_the_steps_of_gradient_descent_on_the_first_batch():
    result = overfit(LEAST_SQUARES, num_steps=5)
    w, expected = np.zeros(3), []
    for _ in range(6):
        error = FEATURES[:16] @ w - LABELS[:16]
        expected.append((error**2).mean())
        w -= 0.1 * 2 * FEATURES[:16].T @ error / 16
    np.testing.assert_allclose(result.losses, expected, rtol=1e-5)
    assert not result.has_passed


class HalfFrozen(nn.Module):
    @nn.compact
    def __call__(self, x_BD):
        return nn.Dense(2, name="trained")(x_BD) + jax.lax.stop_gradient(nn.Dense(2, name="frozen")(x_BD))


@pytest.mark.slow
def test_what_was_seen_comes_first_among_the_causes():
    features, labels = FEATURES[:16].copy(), LABELS[:16].copy()
    features[1], labels[1] = features[0], 1 - labels[0]
    broken = experiment(HalfFrozen(), data=splits(features, labels), tx=optimizers.adam(1e-2))
    result = overfit(broken, 10)
    assert not result.has_passed
    assert result.unmoved == ["frozen/bias", "frozen/kernel"]
    assert result.num_contradictions == 1
    causes = result.causes
    assert len(causes) == 3
    assert causes[0].startswith("no gradient reaches 2 of 4 parameters, such as frozen/bias")
    assert causes[1].startswith("1 examples equal another example with another label")
    assert "still falling" in causes[2]


def test_a_loss_that_explodes_ends_the_check():
    result = overfit(dataclasses.replace(LEAST_SQUARES, tx=optimizers.sgd(1e30)), 100)
    assert len(result.losses) < 10
    assert not result.has_passed
    assert "not finite" in result.causes[0]


def test_without_anything_seen_the_causes_are_the_common_ones():
    stuck = Overfit([0.7] * 100, 1e-3, 16, [], 4, 0)
    assert ["lr-find" in cause or "limits the loss" in cause for cause in stuck.causes] == [
        True,
        True,
        False,
    ]


def attained(example_loss, targets, num_outputs, smoothing_metric=None):
    """Returns `attainable` of a loss of a linear model's outputs, and the model's own loss."""
    model = nn.Dense(num_outputs)
    inputs = jnp.ones((len(targets), 3))
    params = model.init(jax.random.key(0), inputs)

    def loss():
        output = model.apply(params, inputs)
        minimised = example_loss(output, targets).mean()
        judged = minimised if smoothing_metric is None else smoothing_metric(output, targets).mean()
        return minimised, judged

    return attainable(loss)


@pytest.mark.slow
def test_the_best_cross_entropies_are_0_and_the_entropy_of_the_labels():
    labels = jnp.array([0, 0, 0, 1])
    found = attained(losses.cross_entropy, labels, 2)
    assert found.best == pytest.approx(0, abs=1e-3)
    assert found.constant == pytest.approx(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)), rel=1e-3)


@pytest.mark.slow
def test_soft_targets_have_an_entropy_that_no_output_goes_below():
    smoothed = functools.partial(losses.cross_entropy, label_smoothing=0.2)
    found = attained(smoothed, jnp.array([0, 1, 2, 0]), 4, losses.cross_entropy)
    assert found.best == pytest.approx(-np.log(0.85), rel=1e-2)
    target_BC = jnp.array([[0.3, 0.7], [0.5, 0.5]])
    found = attained(losses.cross_entropy, target_BC, 2)
    entropies = -(np.asarray(target_BC) * np.log(target_BC)).sum(1)
    assert found.best == pytest.approx(entropies.mean(), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("unit", [1e-3, 1e4])
def test_the_best_constant_has_the_variance_as_its_squared_error(unit):
    targets = unit * jnp.float32(300 + 10 * np.random.default_rng(1).normal(size=(20, 1)))
    found = attained(losses.mean_squared_error, targets, 1)
    assert found.best == pytest.approx(0, abs=1e-3 * unit**2)
    assert found.constant == pytest.approx(float(targets.var()), rel=1e-3)


@pytest.mark.slow
def test_of_a_density_there_is_no_lowest_loss():
    def gaussian(output, target):
        return (output[:, 1] + jnp.exp(-output[:, 1]) * (output[:, 0] - target) ** 2) / 2

    targets = jnp.float32(np.random.default_rng(1).normal(0, 0.1, 20))
    found = attained(gaussian, targets, 2)
    assert found.best is None
    assert found.constant == pytest.approx((1 + np.log(float(targets.var()))) / 2, rel=1e-3)
    assert found.constant < 0


def test_without_a_model_nothing_is_known():
    assert attainable(lambda: (jnp.ones(()), jnp.ones(()))) is None


class Blind(nn.Module):
    """Learns what a constant can: the mean of the targets."""

    @nn.compact
    def __call__(self, x_BD):
        return nn.Dense(1)(0 * x_BD)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "tx", "has_passed"),
    [(MLP((64,), 1), optimizers.adam(0.1), True), (Blind(), optimizers.sgd(0.1), False)],
)
def test_a_regression_far_from_zero_is_judged_by_what_a_constant_leaves(model, tx, has_passed):
    """The targets are around 30: a model that learns their mean alone has less than 1 % of the first loss."""
    targets = 30 + FEATURES[:, 0] + np.abs(FEATURES[:, 1])
    result = overfit(
        experiment(
            model,
            data=ArraySplits("points", train=ArraySource({"features": FEATURES, "target": targets})),
            task=task.regression(model, input_name="features"),
            tx=tx,
        ),
        300,
    )
    assert result.losses[-1] < 0.01 * result.losses[0]
    assert result.has_passed == has_passed
    assert "the best outputs that ignore the input" in result.why


@pytest.mark.slow
def test_label_smoothing_and_mixup_pass_though_their_losses_stay_up():
    model = MLP((64,), 2)
    smoothed = task.classification(model, label_smoothing=0.2, input_name="features")
    result = overfit(experiment(model, task=with_mixing(smoothed, mixup(1.0, 2, "features"))), 600)
    assert result.has_passed
    assert result.threshold > 0.05


def test_a_loss_below_zero_without_a_known_end_needs_a_threshold():
    def negative(params, model_state, batch, key):
        loss, aux = squared_error(params, model_state, batch, key)
        return loss.plus(-10), aux

    below = dataclasses.replace(LEAST_SQUARES, task=LEAST_SQUARES.task._replace(loss=negative))
    with pytest.raises(UserError, match="starts at -.* --threshold"):
        overfit(below, 5)
    assert overfit(below, 5, threshold=-9.0).has_passed
    with pytest.raises(UserError, match="threshold=nan"):
        overfit(below, 5, threshold=float("nan"))
