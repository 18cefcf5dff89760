"""Which evaluation counts, when a run stops early, and that the test split never decides anything."""

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl import optimizers, task
from dl.errors import UserError
from dl.metrics import Mean
from dl.runs.digest import tree_digest
from dl.runs.log import read_metrics
from dl.stopping import Best, KeepBest, StopAt
from dl.training.batches import make_batches
from dl.training.population import Population, consecutive
from dl.training.program import Program
from dl.training.restore import restore_variables
from dl.training.signals import Stopped
from dl.types import Aux, Source
from tests.helpers import DATA, EXPERIMENT, SignallingConsole, run_in, train_in, without_timing

# The optimizer adds 1 to a weight each step; the loss of evaluation k is CURVE[k], whatever the data.
CURVE = (0.9, 0.5, 0.7, 0.4, 0.6, 0.8, 0.3, 0.2)


def counting_loss(params, model_state, batch, key):
    # In training a slope of -1; in evaluation the curve at the number of updates done.
    if key is not None:
        loss = -params["w"]
    else:
        loss = jnp.take(jnp.asarray(CURVE), jnp.round(params["w"]).astype(int) - 1)
    mean = Mean.of(jnp.full(batch["mask"].shape, loss), batch["mask"])
    return mean, Aux(model_state, {"loss": mean})


def counting(keep_best=None, loss=counting_loss, **changes):
    return dataclasses.replace(
        EXPERIMENT,
        task=task.Task(lambda key, batch: {"params": {"w": jnp.zeros(())}}, loss),
        tx=optimizers.sgd(1.0),
        num_steps=len(CURVE),
        eval_every=1,
        keep_best=keep_best,
        **changes,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("patience", "steps", "best_step"),
    [(1, 3, 2), (2, 6, 4), (3, 8, 8), (None, 8, 8)],
)
def test_it_stops_when_patience_is_lost_and_ends_with_the_best(tmp_path, mesh1, patience, steps, best_step):
    result = train_in(tmp_path / "run", mesh1, counting(KeepBest(patience=patience)))
    assert result["steps"] == steps
    assert result["best"]["step"] == best_step
    assert result["metrics"]["validation"]["loss"] == pytest.approx(CURVE[best_step - 1])
    assert result["metrics"]["test"]["loss"] == pytest.approx(CURVE[best_step - 1])
    assert ("stopped_early" in result) == (steps < len(CURVE))
    assert sum(line["kind"] == "validation" for line in read_metrics(tmp_path / "run/metrics.jsonl")) == steps


def test_the_best_is_restored_also_when_the_run_simply_ends(tmp_path, mesh1):
    experiment = dataclasses.replace(counting(KeepBest()), num_steps=6)
    result = train_in(tmp_path / "run", mesh1, experiment)
    assert (result["steps"], result["best"]["step"]) == (6, 4)
    variables = restore_variables(experiment, run_in(tmp_path / "run"), mesh1)
    assert float(variables["params"]["w"]) == 4.0


def test_without_the_rule_the_last_step_counts(tmp_path, mesh1):
    result = train_in(tmp_path / "run", mesh1, dataclasses.replace(counting(), num_steps=6))
    assert "best" not in result
    assert result["metrics"]["test"]["loss"] == pytest.approx(CURVE[5])


@pytest.mark.slow
def test_a_stopped_run_remembers_its_best_and_its_patience(tmp_path, mesh1):
    experiment = counting(KeepBest(patience=2))
    expected = train_in(tmp_path / "whole", mesh1, experiment)
    for step in (2, 5, 6):
        folder = tmp_path / str(step)
        with pytest.raises(Stopped):
            train_in(folder, mesh1, experiment, console=SignallingConsole(step))
        result = train_in(folder, mesh1, experiment)
        assert result["params_digest"] == expected["params_digest"]
        assert result["metrics"] == expected["metrics"]
        assert result["best"] == expected["best"]
        assert result["stopped_early"] == expected["stopped_early"]
        assert without_timing(folder) == without_timing(tmp_path / "whole")


def test_a_target_ends_the_run_and_says_why(tmp_path, mesh1):
    result = train_in(tmp_path / "run", mesh1, counting(stop_at=StopAt(value=0.45)))
    assert result["steps"] == 4
    assert result["stopped_early"] == "validation loss has reached 0.45"


@pytest.mark.slow
def test_a_target_on_the_training_loss(tmp_path, mesh1):
    experiment = dataclasses.replace(EXPERIMENT, num_steps=400, stop_at=StopAt(value=0.5, split="train"))
    result = train_in(tmp_path / "run", mesh1, experiment)
    assert result["steps"] < 400
    epochs = [line for line in read_metrics(tmp_path / "run/metrics.jsonl") if line["kind"] == "epoch"]
    assert epochs[-1]["loss"] <= 0.5 < epochs[-2]["loss"]


@pytest.mark.parametrize("make", [KeepBest, lambda **k: StopAt(value=0.1, **k)])
def test_the_test_split_may_choose_nothing(make):
    with pytest.raises(UserError, match="evaluated once, at the end"):
        make(split="test")


class Guarded(Source):
    """A test split that fails if it is read before the run has come to its end."""

    def __init__(self, source, may_read):
        self._source, self._may_read = source, may_read

    spec = property(lambda self: self._source.spec)

    def __len__(self):
        return len(self._source)

    def __getitem__(self, indices):
        assert self._may_read(), "the test split was read before the end"
        return self._source[indices]


def test_the_test_split_is_not_read_before_the_end(tmp_path, mesh1):
    folder = tmp_path / "run"

    def is_at_the_end():
        path = folder / "metrics.jsonl"
        lines = read_metrics(path) if path.exists() else []
        return sum(line["kind"] == "validation" for line in lines) == 6

    guarded = Guarded(DATA.evaluations["test"], is_at_the_end)
    data = dataclasses.replace(DATA, evaluations={**DATA.evaluations, "test": guarded})
    object.__setattr__(data, "__dict__", {**data.__dict__, "identity": DATA.identity})
    experiment = dataclasses.replace(counting(KeepBest(patience=2)), data=data)
    assert train_in(folder, mesh1, experiment)["steps"] == 6


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (KeepBest(split="valid"), "split='valid' is not evaluated; choose one of train, validation"),
        (KeepBest(metric="f1"), "metric='f1' is not measured; choose one of loss"),
    ],
)
def test_a_rule_on_what_is_not_measured_is_refused_before_the_first_step(tmp_path, mesh1, rule, message):
    with pytest.raises(UserError, match=message):
        train_in(tmp_path / "run", mesh1, counting(rule))
    assert not (tmp_path / "run").exists()


def test_patience_as_in_keras_and_a_nan_never_improves():
    rule = KeepBest(metric="accuracy", mode="max", patience=2, min_delta=0.1)
    best = Best.none_yet(1)
    values = [np.nan, 0.5, 0.55, 0.65, np.nan, 0.7]
    taken = []
    for k, value in enumerate(values):
        best, is_taken = best.after(rule, {"validation": {"accuracy": value}}, k)
        taken.append(bool(is_taken))
    assert taken == [True, True, False, True, False, False]  # the first stands in until one is finite
    assert best.is_over(rule)
    assert (best.value, best.step) == ([0.65], [3])


def test_every_seed_has_its_own_best_and_its_own_end():
    rule = KeepBest(patience=1)
    best = Best.none_yet(2)
    for k, values in enumerate([(0.5, 0.9), (0.6, 0.8), (0.1, 0.7), (0.1, 0.75)]):
        best, _ = best.after(rule, {"validation": {"loss": np.array(values)}}, k)
    assert best.value == [0.5, 0.7]  # the first stopped before it saw 0.1
    assert best.is_over(rule)


@pytest.mark.slow
def test_seeds_that_train_at_the_same_time_end_as_each_would_alone(tmp_path, mesh1, mesh8):
    rule = KeepBest(patience=2)
    experiment = dataclasses.replace(EXPERIMENT, num_steps=24, keep_best=rule)
    together = train_in(tmp_path / "run", mesh1, experiment, population=consecutive(0, 4))
    spread = train_in(tmp_path / "spread", mesh8, experiment, population=consecutive(0, 8))
    for k, member in enumerate(together["members"]):
        alone = train_in(tmp_path / f"seed{k}", mesh1, dataclasses.replace(experiment, seed=k))
        assert member["seed"] == k
        assert member["best"]["step"] == alone["best"]["step"]
        for split, values in alone["metrics"].items():
            for name, value in values.items():
                assert member["metrics"][split][name] == pytest.approx(value, abs=1e-5)
                assert spread["members"][k]["metrics"][split][name] == pytest.approx(value, abs=1e-5)
    mean = np.mean([member["metrics"]["test"]["loss"] for member in together["members"]])
    assert together["metrics"]["test"]["loss"] == pytest.approx(mean)
    low, high = together["intervals"]["test"]["loss"]
    assert low < mean < high


@pytest.mark.slow
def test_seeds_that_train_at_the_same_time_resume_too(tmp_path, mesh1):
    expected = train_in(tmp_path / "whole", mesh1, population=consecutive(0, 3))
    with pytest.raises(Stopped):
        train_in(tmp_path / "run", mesh1, population=consecutive(0, 3), console=SignallingConsole(7))
    result = train_in(tmp_path / "run", mesh1, population=consecutive(0, 3))
    assert result["params_digest"] == expected["params_digest"]
    assert result["members"] == expected["members"]
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert all(len(line["seeds"]["loss"]) == 3 for line in lines)


class Convolution(nn.Module):
    @nn.compact
    def __call__(self, features_BF, train=False):
        x_BFC = nn.relu(nn.Conv(4, (2,))(features_BF[..., None]))
        return nn.Dense(2)(nn.Conv(3, (2,))(x_BFC).mean(1))


@pytest.mark.slow
def test_seeds_of_a_network_with_convolutions_share_a_program_without_grouped_ones(tmp_path, mesh1):
    # As grouped convolutions, which is what vectorizing makes of them, they are many times slower on a CPU.
    model = Convolution()
    learned = task.classification(model, input_name="features")
    experiment = dataclasses.replace(EXPERIMENT, task=learned, num_steps=4)
    population = consecutive(3, 2)
    program = Program(experiment, mesh1, make_batches(experiment, mesh1, population), population)
    steps = program.compile()
    assert "convolution" in steps.train.as_text()
    assert "feature_group_count" not in steps.train.as_text() + steps.eval.as_text()
    together = train_in(tmp_path / "run", mesh1, experiment, population=population)
    for k, member in enumerate(together["members"]):
        alone = train_in(tmp_path / str(k), mesh1, dataclasses.replace(experiment, seed=population.seeds[k]))
        assert member["metrics"]["test"] == pytest.approx(alone["metrics"]["test"], abs=1e-5)


def with_rate(rate):
    return optimizers.adam(optimizers.cosine(rate, 12, warmup_steps=3))


@pytest.mark.slow
def test_runs_may_differ_in_the_hyperparameters_of_the_optimizer(tmp_path, mesh1):
    rates = (1e-3, 1e-2, 1e-1)
    population = Population(
        (0, 5, 0), {"learning_rate": rates}, lambda options: with_rate(options["learning_rate"])
    )
    together = train_in(tmp_path / "run", mesh1, population=population)
    for k, member in enumerate(together["members"]):
        assert (member["seed"], member["learning_rate"]) == (population.seeds[k], rates[k])
        experiment = dataclasses.replace(EXPERIMENT, seed=population.seeds[k], tx=with_rate(rates[k]))
        alone = train_in(tmp_path / str(k), mesh1, experiment)
        for name, value in alone["metrics"]["test"].items():
            assert member["metrics"]["test"][name] == pytest.approx(value, abs=1e-5)


def test_an_option_that_decides_more_than_a_number_cannot_differ_between_runs(tmp_path, mesh1):
    def tx_of(options):
        return optimizers.sgd(0.1 if options["learning_rate"] > 1 else 0.2)

    population = Population((0, 1), {"learning_rate": (0.1, 0.2)}, tx_of)
    with pytest.raises(UserError, match="learning_rate cannot differ between the runs of one program"):
        train_in(tmp_path / "run", mesh1, population=population)


def test_seeds_on_a_mesh_that_splits_parameters_are_refused(tmp_path):
    from dl.sharding import make_mesh

    with pytest.raises(UserError, match="use --mesh data=N"):
        train_in(tmp_path / "run", make_mesh({"fsdp": 2}), population=consecutive(0, 2))


@pytest.mark.slow
def test_the_first_variables_may_be_given(tmp_path, mesh1):
    start = {"params": {"Dense_1": {"bias": np.full(2, 7.0, np.float32)}}}
    seen = []

    def initial(shapes):
        seen.append(jax.tree.map(lambda leaf: leaf.shape, shapes))
        return start

    experiment = dataclasses.replace(
        EXPERIMENT, warm_start=initial, frozen=["Dense_1/bias"], tx=EXPERIMENT.tx, num_steps=2
    )
    result = train_in(tmp_path / "run", mesh1, experiment)
    assert result["frozen_digest"] == tree_digest({"params/Dense_1/bias": start["params"]["Dense_1"]["bias"]})
    variables = restore_variables(experiment, run_in(tmp_path / "run"), mesh1)
    np.testing.assert_array_equal(variables["params"]["Dense_1"]["bias"], 7.0)
    assert seen[0]["params"]["Dense_1"]["bias"] == (2,)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (
            {"params": {"Dense_9": {"bias": np.zeros(2)}}},
            "params/Dense_9/bias, which the model does not have",
        ),
        (
            {"params": {"Dense_1": {"bias": np.zeros(3)}}},
            "shape \\(3,\\), and the model has it with shape",
        ),
    ],
)
def test_first_variables_that_do_not_fit_are_refused(tmp_path, mesh1, start, message):
    with pytest.raises(UserError, match=message):
        train_in(tmp_path / "run", mesh1, dataclasses.replace(EXPERIMENT, warm_start=lambda context: start))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"mode": "auto"}, "mode='auto' is not understood; it must be 'min' or 'max'"),
        ({"mode": "MAX"}, "mode='MAX' is not understood"),
        ({"min_delta": -0.5}, "min_delta=-0.5 is out of range"),
        ({"min_delta": float("nan")}, "min_delta=nan is out of range"),
        ({"min_delta": float("inf")}, "min_delta=inf is out of range"),
        ({"patience": 0}, "patience=0 is out of range"),
        ({"patience": 2.5}, "patience=2.5 is out of range"),
        ({"patience": True}, "patience=True is out of range"),
    ],
)
def test_impossible_rules_are_refused(arguments, said):
    with pytest.raises(UserError, match=re.escape(said)):
        KeepBest(**arguments)


def with_metric(name, better=None, values=CURVE):
    """The counting experiment with one more metric, of the same curve."""

    def loss_fn(params, model_state, batch, key):
        loss, aux = counting_loss(params, model_state, batch, key)
        value = jnp.take(jnp.asarray(values), jnp.round(params["w"]).astype(int) - 1)
        metric = Mean.of(jnp.full(batch["mask"].shape, value), batch["mask"], better=better)
        return loss, Aux(model_state, {**aux.metrics, name: metric})

    return loss_fn


@pytest.mark.parametrize("name", ["mse", "brier", "perplexity", "regret", "error_rate", "wer"])
@pytest.mark.parametrize("make", [KeepBest, lambda **k: StopAt(value=0.1, **k)])
def test_a_metric_that_does_not_state_its_direction_chooses_nothing(tmp_path, mesh1, name, make):
    field = "keep_best" if make is KeepBest else "stop_at"
    experiment = counting(loss=with_metric(name), **{field: make(metric=name)})
    with pytest.raises(UserError, match=f"metric='{name}' does not state whether small or large"):
        train_in(tmp_path / "run", mesh1, experiment)
    assert not (tmp_path / "run/metrics.jsonl").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("better", "mode", "best_step"),
    [("min", None, 8), ("max", None, 1), (None, "min", 8), (None, "max", 1), ("min", "max", 1)],
)
def test_the_direction_is_that_of_the_metric_or_of_the_rule(tmp_path, mesh1, better, mode, best_step):
    loss_fn = with_metric("regret", better)
    experiment = counting(KeepBest(metric="regret", mode=mode), loss_fn)
    result = train_in(tmp_path / "run", mesh1, experiment)
    assert result["best"]["step"] == best_step
    assert result["better"] == {"loss": None, "regret": better}


def test_where_no_evaluation_is_finite_the_run_ends_with_its_last_variables_and_says_so(tmp_path, mesh1):
    loss_fn = with_metric("auc", "max", [np.nan] * len(CURVE))
    experiment = counting(KeepBest(metric="auc"), loss_fn)
    result = train_in(tmp_path / "run", mesh1, experiment)
    assert result["metrics"]["test"]["loss"] == pytest.approx(CURVE[-1])
    assert result["metrics"]["validation"]["loss"] == pytest.approx(CURVE[-1])
    assert "auc was a finite number in no evaluation" in result["warnings"][0]
    variables = restore_variables(experiment, run_in(tmp_path / "run"), mesh1)
    assert float(variables["params"]["w"]) == len(CURVE)


def test_one_finite_evaluation_is_the_best(tmp_path, mesh1):
    loss_fn = with_metric("auc", "max", [np.nan, np.nan, 0.5, *[np.nan] * 5])
    experiment = counting(KeepBest(metric="auc"), loss_fn)
    result = train_in(tmp_path / "run", mesh1, experiment)
    assert (result["best"]["step"], result["best"]["value"]) == (3, 0.5)
    assert "warnings" not in result
    assert result["metrics"]["test"]["loss"] == pytest.approx(CURVE[2])
