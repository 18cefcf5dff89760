"""`dl.train` and `dl.load_run`: what a command does, as functions that return objects."""

import dataclasses
import pickle

import numpy as np
import pytest

import dl
from dl.runs.console import Console
from tests.helpers import DATA, EXPERIMENT, SignallingConsole, source_of, train_in

QUIET = Console(is_quiet=True)
FEATURES = DATA.evaluations["test"].arrays["features"]


@pytest.fixture(scope="module")
def result(mesh1):
    return dl.train(EXPERIMENT, mesh=mesh1, log_every=1, console=QUIET)


def test_without_a_folder_nothing_is_written(tmp_path, mesh1, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dl.train(dataclasses.replace(EXPERIMENT, num_steps=2), mesh=mesh1, console=QUIET)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_in_memory_and_in_a_folder_the_bits_are_the_same(result, tmp_path, mesh1):
    record = train_in(tmp_path / "run", mesh1)
    assert result.record["params_digest"] == record["params_digest"]
    assert result.metrics["test"]["accuracy"] == record["metrics"]["test"]["accuracy"]


@pytest.mark.slow
def test_the_history_has_a_row_for_each_step_and_evaluation(result, tmp_path, mesh1):
    kinds = [row["kind"] for row in result.history]
    assert kinds.count("train") == 12
    assert kinds.count("validation") == 3
    assert kinds[-1] == "test"
    of_folder = dl.train(EXPERIMENT, tmp_path / "run", mesh=mesh1, log_every=1, console=QUIET).history
    timing = ("seconds", "examples_per_second")
    one, other = (
        [{k: v for k, v in row.items() if k not in timing} for row in rows]
        for rows in (result.history, of_folder)
    )
    assert one == other


def test_a_metric_is_a_number_that_knows_its_interval(result):
    accuracy = result.metrics["test"]["accuracy"]
    low, high = result.record["intervals"]["test"]["accuracy"]
    assert (accuracy.low, accuracy.high) == (low, high)
    assert low <= accuracy <= high
    assert repr(accuracy) == f"{float(accuracy):.4g} [{low:.4g}, {high:.4g}]"
    again = pickle.loads(pickle.dumps(accuracy))
    assert (again, again.low, again.high) == (accuracy, low, high)


@pytest.mark.parametrize("batch_size", [1, 4, 13, 500, None])
def test_predictions_do_not_depend_on_the_batch_size(result, batch_size):
    logits = result.predict(FEATURES, batch_size)
    assert isinstance(logits, np.ndarray)
    assert logits.shape == (13, 2)
    np.testing.assert_allclose(logits, result.predict(FEATURES, 13), rtol=1e-5, atol=1e-6)
    hits = logits.argmax(1) == DATA.evaluations["test"].arrays["label"]
    assert hits.mean() == pytest.approx(result.metrics["test"]["accuracy"])


@pytest.mark.parametrize("inputs", [FEATURES[0], FEATURES[:0], FEATURES[None]])
def test_inputs_of_another_form_are_one_line(result, inputs):
    with pytest.raises(dl.UserError, match="one row for each example|at least one") as caught:
        result.predict(inputs)
    assert "\n" not in str(caught.value)


def test_inputs_that_the_model_does_not_take_are_one_line(result):
    with pytest.raises(
        dl.UserError, match=r"features has the shape \(13, \d+\), which the model does not take"
    ):
        result.predict(FEATURES[:, 1:])


def test_a_result_is_shown_with_its_metrics(result):
    assert repr(result).startswith("<Result of a run in memory: {'test': {'loss': ")


def test_a_warm_start_from_a_result_is_one_line(result, mesh1):
    with pytest.raises(dl.UserError, match="warm_start= is a Result; give variables, such as run.variables"):
        dl.train(dataclasses.replace(EXPERIMENT, warm_start=result), mesh=mesh1, console=QUIET)


@pytest.mark.slow
def test_the_same_folder_resumes_and_returns_what_has_finished(result, tmp_path, mesh1):
    folder = tmp_path / "run"
    with pytest.raises(Exception, match="to resume: dl.train"):
        dl.train(EXPERIMENT, folder, mesh=mesh1, console=SignallingConsole(5))
    ended = dl.train(EXPERIMENT, str(folder), mesh=mesh1, console=QUIET)
    assert ended.record["params_digest"] == result.record["params_digest"]
    again = dl.train(EXPERIMENT, folder, mesh=mesh1, console=QUIET)
    assert again.record == ended.record
    np.testing.assert_array_equal(again.predict(FEATURES), ended.predict(FEATURES))


@pytest.mark.parametrize(
    "change",
    [{"num_steps": 11}, {"seed": 1}, {"tx": dl.optimizers.sgd(0.1)}, {"batch_size": 8}, {"ema_decay": 0.9}],
)
def test_a_folder_never_returns_the_result_of_another_experiment(tmp_path, mesh1, change):
    folder = tmp_path / "run"
    dl.train(EXPERIMENT, folder, mesh=mesh1, console=QUIET)
    with pytest.raises(dl.UserError, match="holds another run"):
        dl.train(dataclasses.replace(EXPERIMENT, **change), folder, mesh=mesh1, console=QUIET)


@pytest.mark.slow
def test_a_run_is_loaded_with_its_experiment_and_goes_on_from_its_variables(result, tmp_path, mesh1):
    folder = tmp_path / "run"
    dl.train(EXPERIMENT, folder, mesh=mesh1, console=QUIET)
    run = dl.load_run(folder, EXPERIMENT, mesh=mesh1)
    np.testing.assert_array_equal(run.predict(FEATURES), result.predict(FEATURES))
    assert run.metrics == result.metrics
    further = dataclasses.replace(run.experiment, warm_start=run.variables, num_steps=3)
    assert dl.train(further, mesh=mesh1, console=QUIET).record["steps"] == 3


def test_a_run_is_not_loaded_as_another_experiment(tmp_path, mesh1):
    folder = tmp_path / "run"
    dl.train(EXPERIMENT, folder, mesh=mesh1, console=QUIET)
    with pytest.raises(dl.UserError, match="holds another run"):
        dl.load_run(folder, dataclasses.replace(EXPERIMENT, num_steps=11), mesh=mesh1)
    with pytest.raises(dl.UserError, match="not an installed experiment"):
        dl.load_run(folder, mesh=mesh1)


def test_what_is_not_an_experiment_is_one_line():
    with pytest.raises(dl.UserError, match="3 is not an Experiment; pass an Experiment"):
        dl.train(3)


def test_a_definition_trains_its_function_with_its_options(tmp_path, mesh1):
    def experiment(num_steps=12, seed=0):
        return dataclasses.replace(EXPERIMENT, num_steps=num_steps, seed=seed)

    definition = dl.Definition(experiment, {"num_steps": 3})
    result = dl.train(definition, tmp_path / "run", mesh=mesh1, console=QUIET)
    assert result.record["steps"] == 3
    assert result.experiment.data is definition.build().data
    other = dl.Definition(experiment, {"num_steps": 3, "seed": 1})
    with pytest.raises(dl.UserError, match="seed: 0 there, 1 here"):
        dl.train(other, tmp_path / "run", mesh=mesh1, console=QUIET)


def test_a_notebooks_experiment_of_other_versions_is_not_taken_for_the_same(tmp_path, mesh1, monkeypatch):
    folder = tmp_path / "run"
    dl.train(EXPERIMENT, folder, mesh=mesh1, console=QUIET)
    monkeypatch.setattr("dl.training.identity.version", lambda name: "99.0")
    with pytest.raises(dl.UserError, match="begun under other versions"):
        dl.train(EXPERIMENT, folder, mesh=mesh1, console=QUIET)
    assert dl.load_run(folder, EXPERIMENT, mesh=mesh1).metrics  # what it holds can be read


def test_a_run_is_not_loaded_with_other_data(tmp_path, mesh1):
    folder = tmp_path / "run"
    dl.train(EXPERIMENT, folder, mesh=mesh1, console=QUIET)
    other = dl.data.ArraySplits("halfspace", DATA.train, {**DATA.evaluations, "test": source_of(13, 3)})
    with pytest.raises(dl.UserError, match="checksum: .* there, .* here"):
        dl.load_run(folder, dataclasses.replace(EXPERIMENT, data=other), mesh=mesh1)
