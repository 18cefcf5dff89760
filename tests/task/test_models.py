import dataclasses

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dl import optimizers, task
from dl.diagnostics.overfit import overfit
from dl.errors import UserError
from dl.metrics import Mean
from dl.precision import BFLOAT16, computing_in
from dl.runs.predictions import read_predictions
from dl.training.restore import restore_variables
from dl.training.step import StepConfig, update_state
from dl.types import Aux
from tests.helpers import EXPERIMENT, losses_of, run_in, train_in

WIDTH = 8


def fixed(key, shape, dtype=jnp.float32, **_):
    """An initializer that draws the same whatever the key."""
    values = np.random.default_rng(shape[0]).normal(size=shape) / np.sqrt(shape[0])
    return jnp.asarray(values, dtype)


# One network in three libraries: two dense layers with a ReLU between them.


class InLinen(nn.Module):
    with_norm: bool = False

    @nn.compact
    def __call__(self, x_BF, train=False):
        x_BF = nn.Dense(WIDTH, kernel_init=fixed, name="first")(x_BF)
        if self.with_norm:
            x_BF = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x_BF)
        return nn.Dense(2, kernel_init=fixed, name="second")(nn.relu(x_BF))


class InNNX(nnx.Module):
    def __init__(self, rngs, with_norm=False, dropout=0.0):
        self.first = nnx.Linear(3, WIDTH, kernel_init=fixed, rngs=rngs)
        self.norm = nnx.BatchNorm(WIDTH, momentum=0.9, rngs=rngs) if with_norm else None
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.second = nnx.Linear(WIDTH, 2, kernel_init=fixed, rngs=rngs)

    def __call__(self, x_BF):
        x_BF = self.first(x_BF)
        if self.norm is not None:
            x_BF = self.norm(x_BF)
        return self.second(self.dropout(nn.relu(x_BF)))


class Bare(nnx.Module):
    def __init__(self):
        self.scale = jnp.ones(3)


def dense(key, num_inputs, num_outputs):
    return {"kernel": fixed(key, (num_inputs, num_outputs)), "bias": jnp.zeros(num_outputs)}


def init_functions(key, x_BF):
    return {"params": {"first": dense(key, 3, WIDTH), "second": dense(key, WIDTH, 2)}}


def apply_functions(params, model_state, x_BF, key):
    x_BF = nn.relu(x_BF @ params["first"]["kernel"] + params["first"]["bias"][None])
    return x_BF @ params["second"]["kernel"] + params["second"]["bias"][None], model_state


FUNCTIONS = task.Model(init_functions, apply_functions)


def experiment_of(model):
    learned = task.classification(model, input_name="features")
    return dataclasses.replace(EXPERIMENT, task=learned, tx=optimizers.sgd(0.5))


@pytest.fixture(scope="module")
def in_linen(tmp_path_factory, mesh1):
    folder = tmp_path_factory.mktemp("linen") / "run"
    return folder, train_in(folder, mesh1, experiment_of(InLinen()))


@pytest.mark.slow
@pytest.mark.parametrize("model", [lambda rngs: InNNX(rngs), FUNCTIONS], ids=["nnx", "functions"])
def test_the_same_network_trains_alike_in_every_library(tmp_path, mesh1, in_linen, model):
    folder, expected = in_linen
    experiment = experiment_of(model)
    result = train_in(tmp_path / "run", mesh1, experiment)
    assert losses_of(tmp_path / "run") == pytest.approx(losses_of(folder), rel=1e-5)
    assert losses_of(folder)[12] < 0.8 * losses_of(folder)[1]
    assert result["num_parameters"] == expected["num_parameters"]
    assert result["metrics"]["test"] == pytest.approx(expected["metrics"]["test"], rel=1e-5)
    ours, theirs = (
        restore_variables(experiment, run_in(at), mesh1) for at in (tmp_path / "run", folder)
    )  # the names are the same too
    chex.assert_trees_all_close(ours, theirs, atol=1e-6)
    ours, theirs = (read_predictions(at / "predictions.npz") for at in (tmp_path / "run", folder))
    np.testing.assert_allclose(ours.log_probabilities, theirs.log_probabilities, atol=1e-5)


@pytest.mark.slow
def test_batch_norms_of_linen_and_nnx_gather_the_same_statistics(tmp_path, mesh1):
    experiments = [experiment_of(InLinen(with_norm=True)), experiment_of(lambda rngs: InNNX(rngs, True))]
    linen, in_nnx = (tmp_path / name for name in ("linen", "nnx"))
    results = [
        train_in(at, mesh1, experiment) for at, experiment in zip((linen, in_nnx), experiments, strict=True)
    ]
    assert losses_of(in_nnx) == pytest.approx(losses_of(linen), rel=1e-4)
    assert results[1]["metrics"]["test"] == pytest.approx(results[0]["metrics"]["test"], rel=1e-4)
    found = [restore_variables(experiments[1], run_in(at), mesh1) for at in (in_nnx, linen)]
    chex.assert_trees_all_close(*found, atol=1e-5)
    assert jnp.abs(found[0]["batch_stats"]["norm"]["mean"]).max() > 0.01


def test_a_frozen_batch_norm_of_nnx_keeps_its_statistics():
    learned = task.classification(lambda rngs: InNNX(rngs, True), input_name="features")
    batch = {"features": jnp.ones((4, 3)), "label": jnp.arange(4) % 2, "mask": jnp.ones(4, bool)}
    tx = optimizers.sgd(0.1)

    def after(frozen):
        config = StepConfig(init_fn=learned.init, loss_fn=learned.loss, tx=tx, frozen=frozen)
        before = config.init(batch, 0)
        return before, jax.jit(lambda s: update_state(config, s, batch)[0])(before)

    before, frozen = after(["^norm/"])
    chex.assert_trees_all_equal(frozen.model_state, before.model_state)
    chex.assert_trees_all_equal(frozen.params["norm"], before.params["norm"])
    before, half_frozen = after(["^norm/bias"])
    assert (half_frozen.model_state["batch_stats"]["norm"]["mean"] != 0).any()


def test_dropout_of_nnx_draws_from_the_key_and_only_in_training():
    model = task.as_model(lambda rngs: InNNX(rngs, dropout=0.5))
    x_BF = jax.random.normal(jax.random.key(0), (4, 3))
    variables = model.init(jax.random.key(0), x_BF)
    assert variables.keys() == {"params"}  # the state of random streams is not saved
    apply = jax.jit(lambda key: model.apply(variables["params"], {}, x_BF, key)[0])
    first, again, other = (apply(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    evaluated, _ = model.apply(variables["params"], {}, x_BF, None)
    expected, _ = apply_functions(variables["params"], {}, x_BF, None)
    np.testing.assert_allclose(evaluated, expected, rtol=1e-6)


def test_parameters_of_nnx_follow_from_the_key_alone_or_of_several_members():
    model = task.as_model(lambda rngs: nnx.Linear(3, 2, rngs=rngs))
    keys = jax.random.split(jax.random.key(0), 2)
    alone = [jax.jit(model.init)(key, None)["params"]["kernel"] for key in keys]
    together = jax.vmap(lambda key: model.init(key, None))(keys)["params"]["kernel"]
    np.testing.assert_allclose(together, np.stack(alone), rtol=1e-6)
    assert (alone[0] != alone[1]).any()


@pytest.mark.parametrize("model", [lambda rngs: InNNX(rngs), FUNCTIONS, InLinen()])
def test_every_library_computes_in_the_precision_of_the_run(model):
    learned = task.classification(model, input_name="features")
    batch = {"features": jnp.ones((4, 3)), "label": jnp.zeros(4, int), "mask": jnp.ones(4, bool)}
    variables = jax.eval_shape(learned.init, jax.random.key(0), batch)
    lowered = computing_in(BFLOAT16, learned)
    traced = jax.make_jaxpr(lowered.predict)(variables, batch)
    products = [e for e in traced.jaxpr.eqns if e.primitive.name == "dot_general"]
    assert [{v.aval.dtype.name for v in e.invars} for e in products] == [{"bfloat16"}] * 2
    assert traced.out_avals[0].dtype == jnp.float32


@pytest.mark.slow
def test_what_is_attainable_is_known_of_other_libraries_than_linen():
    assert "the best outputs that ignore the input" in overfit(experiment_of(FUNCTIONS), 2).why


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nnx.Linear(3, 2, rngs=nnx.Rngs(0)), "Linear is an NNX module that has its parameters already"),
        (3, "3 is not a model; give a Linen module"),
        (lambda rngs: Bare(), "the array scale of an NNX module is not an nnx.Variable"),
        (lambda rngs: 3, "the function of a model returned 3, which is not an NNX module; give"),
    ],
)
def test_what_is_not_a_model_is_refused(model, message):
    with pytest.raises(UserError, match=message):
        task.as_model(model).init(jax.random.key(0), None)


def test_a_module_of_many_lines_is_named_by_its_class():
    with pytest.raises(UserError, match="an object of Rngs, which is not an NNX module; give a") as caught:
        task.as_model(lambda rngs: rngs).init(jax.random.key(0), None)
    assert "\n" not in str(caught.value)


class Two(nn.Module):
    def __call__(self, x):
        return x, x


@pytest.mark.parametrize(
    ("init", "apply", "message"),
    [
        (lambda key, x: {"params": {}}, lambda p, s, x, key: x, "returned one array; it must return a pair"),
        (lambda key, x: {"w": x}, lambda p, s, x, key: (x, s), "init .* a dict of w; it must return"),
        (lambda key, x: {"params": {}}, lambda p, s, x, key: (None, s), "the model returned None in place"),
        (None, None, "the model returned a value of type tuple in place of one array"),
    ],
)
def test_what_is_not_one_array_is_refused(init, apply, message):
    learned = task.classification(Two() if init is None else task.Model(init, apply))
    batch = {"image": jnp.ones((4, 3)), "label": jnp.zeros(4, int), "mask": jnp.ones(4, bool)}
    with pytest.raises(UserError, match=message):
        learned.loss(learned.init(jax.random.key(0), batch).get("params", {}), {}, batch, None)


def test_a_batch_without_labels_is_refused():
    batch = {"image": jnp.ones((4, 3)), "y": jnp.zeros(4, int), "mask": jnp.ones(4, bool)}
    params = FUNCTIONS.init(jax.random.key(0), batch["image"])["params"]
    with pytest.raises(UserError, match="the data have no feature label, .*; they have image, y"):
        task.classification(FUNCTIONS).loss(params, {}, batch, None)


def test_a_task_may_be_written_by_hand(tmp_path, mesh1):
    def loss(params, model_state, batch, key):
        error_B = jnp.abs(batch["features"] @ params["w"] - batch["label"])
        mean = Mean.of(error_B, batch["mask"], better="min")
        return mean, Aux(model_state, {"loss": mean})

    by_hand = task.Task(
        init=lambda key, batch: {"params": {"w": jnp.zeros(batch["features"].shape[1])}},
        loss=loss,
        predict=lambda variables, batch: batch["features"] @ variables["params"]["w"],
    )
    result = train_in(tmp_path / "run", mesh1, dataclasses.replace(EXPERIMENT, task=by_hand))
    assert (result["kind"], result["num_parameters"]) == (None, 3)
    kept = read_predictions(tmp_path / "run/predictions.npz")
    label = EXPERIMENT.data.evaluations["test"].arrays["label"]
    assert result["metrics"]["test"]["loss"] == pytest.approx(np.abs(kept.output - label).mean(), rel=1e-5)


def test_an_input_that_the_batch_lacks_is_named():
    with pytest.raises(UserError, match="no feature image for the model to read; they have features: set"):
        task.classification(InLinen()).init(jax.random.key(0), {"features": jnp.ones((2, 3))})
