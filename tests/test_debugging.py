import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dl import losses, optimizers
from dl.data.source import ArraySource
from dl.data.splits import ArraySplits
from dl.debugging import Overfit, overfit
from dl.experiment import Experiment
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
        "model": model,
        "input_name": "features",
        "loss_fn": losses.classification(model, input_name="features"),
        "tx": optimizers.adamw(3e-2, weight_decay=0.01),
        "num_steps": 10,
        "batch_size": 16,
        **changes,
    }
    return Experiment(**fields)


def forbidden(key, example):
    raise AssertionError("augmentation is off here")


def test_random_labels_are_learnt_by_heart_in_spite_of_dropout_and_augmentation():
    seen = []
    result = overfit(experiment(augment=forbidden), 300, watch=lambda step, loss: seen.append((step, loss)))
    assert result.has_passed
    assert result.losses[-1] < 1e-3 <= result.losses[-2]
    assert [loss for _, loss in seen] == list(result.losses)
    assert [step for step, _ in seen] == list(range(len(result.losses)))
    assert 0.5 * np.log(2) < result.losses[0] < 2 * np.log(2)
    assert (result.num_examples, result.num_contradictions, list(result.unmoved)) == (16, 0, [])


def squared_error(params, model_state, batch, key):
    loss_B = (batch["features"] @ params["w"] - batch["label"]) ** 2
    return Mean.of(loss_B, batch["mask"]).compute(), Aux(model_state, {})


LEAST_SQUARES = experiment(
    loss_fn=squared_error,
    init_fn=lambda key, batch: {"params": {"w": jnp.zeros(3)}},
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
    assert causes[1].startswith("1 examples equal another one that has another label")
    assert "still falling" in causes[2]


def test_a_loss_that_explodes_ends_the_check():
    result = overfit(dataclasses.replace(LEAST_SQUARES, tx=optimizers.sgd(1e30)), 100)
    assert len(result.losses) < 10
    assert not result.has_passed
    assert "no number any more" in result.causes[0]


def test_without_anything_seen_the_causes_are_the_common_ones():
    stuck = Overfit([0.7] * 100, 1e-3, 16, [], 4, 0)
    assert ["lr-find" in cause or "holds the loss up" in cause for cause in stuck.causes] == [
        True,
        True,
        False,
    ]
