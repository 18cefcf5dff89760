"""Training whose bits do not depend on the devices."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest

import dl
from dl import optimizers, task
from dl.data import ArraySource, ArraySplits
from dl.errors import UserError
from dl.experiment import Experiment
from dl.gradients import accumulated_gradient
from dl.runs.console import Console
from dl.sharding import make_mesh
from dl.training.population import Population
from dl.training.run_options import with_run_options
from tests.helpers import EXPERIMENT


class Network(nn.Module):
    """Convolution, batch norm, dropout, and a kernel that is large enough to be split."""

    @nn.compact
    def __call__(self, x_BHWC, train=False):
        x_BHWC = nn.Conv(8, (3, 3))(x_BHWC)
        x_BHWC = nn.relu(nn.BatchNorm(use_running_average=not train)(x_BHWC))
        x_BF = x_BHWC.reshape(len(x_BHWC), -1)
        x_BF = nn.relu(nn.Dense(64)(nn.Dropout(0.2, deterministic=not train)(x_BF)))
        return nn.Dense(4)(x_BF)


def experiment(**changes):
    random = np.random.default_rng(0)
    image, label = random.normal(size=(70, 8, 8, 3)).astype(np.float32), random.integers(0, 4, 70)
    options = {
        "data": ArraySplits(
            "noise",
            train=ArraySource({"image": image, "label": label.astype(np.int32)}),
            evaluations={"test": ArraySource({"image": image[:20], "label": label[:20].astype(np.int32)})},
        ),
        "task": task.classification(Network()),
        "tx": optimizers.adamw(1e-2, clip_norm=1.0),
        "num_steps": 6,
        "batch_size": 32,
        "eval_batch_size": 16,
        "reduction": "exact",
    }
    return Experiment(**{**options, **changes})


def train(mesh, **changes):
    return dl.train(experiment(**changes), mesh=make_mesh(mesh), console=Console(is_quiet=True))


@pytest.fixture(scope="module")
def alone():
    return train({"data": 1})


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh",
    [{"data": 2}, {"data": 8}, {"fsdp": 8}, {"data": 2, "fsdp": 2}, {"data": 4, "fsdp": 2}],
)
def test_a_run_has_the_same_bits_on_every_mesh(mesh, alone):
    assert train(mesh).record["params_digest"] == alone.record["params_digest"]


@pytest.mark.slow
def test_the_gradient_is_that_of_the_batch():
    """Without batch norm and dropout the parts change nothing but the order of additions."""
    plain = dataclasses.replace(EXPERIMENT, task=task.classification(nn.Dense(2), input_name="features"))
    runs = [
        dl.train(
            dataclasses.replace(plain, reduction=reduction),
            mesh=make_mesh({"data": 1}),
            console=Console(is_quiet=True),
        )
        for reduction in ("fast", "exact")
    ]
    for fast, exact in zip(*(jax.tree.leaves(run.params) for run in runs), strict=True):
        np.testing.assert_allclose(exact, fast, rtol=1e-5, atol=1e-6)
    assert runs[0].metrics["test"]["loss"] == pytest.approx(runs[1].metrics["test"]["loss"], rel=1e-5)


def test_the_choice_of_an_experiment_holds_without_the_option():
    assert with_run_options(experiment(), {}).reduction == "exact"
    assert with_run_options(experiment(reduction="fast"), {"reduction": "exact"}).reduction == "exact"
    assert with_run_options(experiment(reduction="fast"), {}).reduction == "fast"
    with pytest.raises(UserError, match="reduction='slow' is unknown"):
        with_run_options(experiment(), {"reduction": "slow"})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch_size": 12}, "multiple of 8"),
        ({"grad_fn": accumulated_gradient(2)}, "grad_fn of its own"),
    ],
)
def test_what_cannot_be_exact_is_refused(changes, said):
    with pytest.raises(UserError, match=said):
        train({"data": 1}, **changes)
    with pytest.raises(UserError, match="1, 2, 4 or 8 devices"):
        train({"data": 2, "tensor": 2})
    with pytest.raises(UserError, match="single run"):
        dl.train(experiment(), mesh=make_mesh({"data": 1}), population=Population((0, 1)))


@pytest.mark.parametrize("reduction", ["fast", "exact"])
def test_an_exact_run_says_so(reduction, capsys):
    dl.train(dataclasses.replace(EXPERIMENT, reduction=reduction, num_steps=1), mesh=make_mesh({"data": 1}))
    assert ("steps take longer" in capsys.readouterr().out) == (reduction == "exact")
