"""Cross-validation: trained and evaluated on folds, beside the baseline, without a look at the test split."""

import dataclasses
import fcntl
import json
import shutil
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dl import Experiment, KeepBest, PositiveInt, main, optimizers, task
from dl.data import ArraySource, ArraySplits
from dl.errors import UserError
from dl.evaluation.paired import overlapping_folds
from dl.metrics import Mean
from dl.models.mlp import MLP
from dl.report import write_folds_report
from dl.runs.run import Run
from dl.studies.cross_validation import cross_validate
from dl.types import Aux, BaselineScores
from dl.warm_start import FromExperiment
from tests.data.points import data_of, with_three_splits
from tests.helpers import run_in


def experiment(num_steps: PositiveInt = 4, seed: PositiveInt = 3) -> Experiment:
    """Trains.

    Args:
      num_steps: updates.
      seed: of everything.
    """
    model = MLP(hidden=(4,), num_classes=2)
    return Experiment(
        data=data_of(),
        task=task.classification(model, input_name="features"),
        tx=optimizers.adam(1e-2),
        num_steps=num_steps,
        batch_size=8,
        eval_batch_size=8,
        seed=seed,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A cross-validation by the command line, and what it printed."""
    folder = tmp_path_factory.mktemp("folds") / "run"
    argv = ["--folds", "3", "--num-steps", "4", "--mesh", "data=1", "--workdir", str(folder)]
    before, sys.argv = sys.argv, ["program", *argv]
    try:
        main(experiment, argv)
    finally:
        sys.argv = before
    return folder, argv


@pytest.mark.slow
def test_the_mean_over_folds_has_students_interval(finished, capsys):
    folder, argv = finished
    summary = json.loads((folder / "folds.json").read_text())
    results = [json.loads((folder / f"fold-{k}" / "result.json").read_text()) for k in (1, 2, 3)]
    for result in results:
        assert set(result["metrics"]) == {"validation"}
        assert result["steps"] == 4
    assert [fold["metrics"] for fold in summary["folds"]] == [result["metrics"] for result in results]
    accuracies = [result["metrics"]["validation"]["accuracy"] for result in results]
    low, high = stats.t.interval(0.95, 2, np.mean(accuracies), stats.sem(accuracies))
    assert summary["metrics"]["validation"]["accuracy"] == pytest.approx(np.mean(accuracies))
    assert summary["intervals"]["validation"]["accuracy"] == pytest.approx([low, high])
    options = json.loads((folder / "fold-2" / "run.json").read_text())["options"]
    assert options == {"num_steps": 4, "seed": 3, "folds": 3, "fold": 2}
    main(experiment, argv)  # again: nothing is trained, the last line is the result
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first == (
        "3 folds, stratified by label; each run has 4 steps, 1.333 epochs of its 20 examples or more (of the "
        "experiment's own 22: 1.333)"
    )
    found = f"validation_accuracy={np.mean(accuracies):.4f} validation_accuracy_ci95={low:.4f}..{high:.4f} "
    assert f"{found}folds=3 stratified=True " in last
    assert summary["is_stratified"]
    assert [fold["epochs"] for fold in summary["folds"]] == [4 / 3] * 3
    assert last.endswith("NOTE: a caveat")
    assert [len(json.loads((folder / f"fold-{k}/run.json").read_text())["starts"]) for k in (1, 2, 3)] == [
        1
    ] * 3


@pytest.mark.slow
def test_a_fold_without_its_end_is_finished(finished, tmp_path):
    folder, argv = finished
    whole = json.loads((folder / "folds.json").read_text())
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    (copy / "folds.json").unlink()
    (copy / "fold-3" / "result.json").unlink()
    main(experiment, [*argv[:-1], str(copy)])
    again = json.loads((copy / "folds.json").read_text())
    assert again["metrics"] == whole["metrics"]
    starts = [len(json.loads((copy / f"fold-{k}/run.json").read_text())["starts"]) for k in (1, 2, 3)]
    assert starts == [1, 1, 2]


def test_what_was_trained_on_the_same_data_is_no_start(tmp_path, mesh1):
    leaking = dataclasses.replace(experiment(), warm_start=FromExperiment(experiment))
    with pytest.raises(UserError, match="trained on all of points, including the held-out folds"):
        cross_validate(run_in(tmp_path / "run", experiment=leaking), mesh1, num_folds=2)


@pytest.mark.slow
def test_other_folders_are_refused(finished, tmp_path, mesh1):
    folder, argv = finished
    run = run_in(folder / "fold-1", experiment=experiment())
    with pytest.raises(UserError, match="is not empty and does not hold a cross-validation"):
        cross_validate(run, mesh1, num_folds=2)
    with pytest.raises(SystemExit):
        main(experiment, ["--folds", "2", *argv[2:]])
    with pytest.raises(SystemExit):
        main(experiment, argv[2:])


def test_the_command_that_goes_on_names_the_folder_of_all_folds(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["x", "--folds", "3"])
    run = run_in(tmp_path / "all", name="experiments.x")
    part = Run(run.folder / "fold-1", run.definition, run.resume_command)
    assert part.resume_command == f"python -m experiments.x --folds 3 --workdir {tmp_path}/all"


def regression(num_steps: PositiveInt = 2) -> Experiment:
    """A line through points: there is no class."""
    whole = ArraySource({"image": np.arange(12, dtype=np.float32), "target": np.ones(12, np.float32)})

    def loss_fn(params, model_state, batch, key):
        loss = Mean.of((params["bias"] - batch["target"]) ** 2, batch["mask"])
        return loss, Aux(model_state, {"mse": loss, "loss": loss})

    return Experiment(
        data=ArraySplits("line", whole),
        task=task.Task(lambda key, batch: {"params": {"bias": jnp.zeros(())}}, loss_fn),
        tx=optimizers.sgd(0.1),
        num_steps=num_steps,
        batch_size=4,
    )


@pytest.mark.slow
def test_a_regression_without_other_splits_has_folds(tmp_path, mesh1, capsys):
    summary = cross_validate(run_in(tmp_path / "all", experiment=regression()), mesh1, num_folds=3)
    assert not summary["is_stratified"]
    assert set(summary["metrics"]["validation"]) == {"mse", "loss"}
    out = capsys.readouterr().out
    assert "3 folds, drawn at random, as there is no class of each example as `label`; each run has 2" in out
    assert "folds=3 stratified=False" in out


class Constant:
    """A baseline whose predictions are right for the share `right` of the examples, for the first ones."""

    def __init__(self, right):
        self.right = right

    def __call__(self, data):
        size = len(data.evaluations["validation"])
        values = (np.arange(size) < self.right * size).astype(float)
        return BaselineScores("constant", {"validation": {"accuracy": np.stack([values, np.ones(size)], -1)}})


@pytest.mark.slow
def test_the_baseline_is_scored_on_the_same_folds(tmp_path, mesh1, capsys):
    compared = dataclasses.replace(
        experiment(), data=with_three_splits(), baseline=Constant(0.5), keep_best=KeepBest()
    )
    run = run_in(tmp_path / "all", experiment=compared)
    summary = cross_validate(run, mesh1, num_folds=3, with_test=True)
    (baseline,) = summary["baselines"]
    found = [json.loads((run.folder / f"fold-{k}/result.json").read_text()) for k in (1, 2, 3)]
    assert all("best" not in result for result in found)  # the held-out fold chooses nothing
    network = np.array([result["metrics"]["validation"]["accuracy"] for result in found])
    cheap = np.array([result["baselines"][0]["metrics"]["validation"]["accuracy"] for result in found])
    assert baseline["metrics"]["validation"]["accuracy"] == pytest.approx(cheap.mean())
    difference = baseline["differences"]["validation"]["accuracy"]
    assert difference["estimate"] == pytest.approx((network - cheap).mean())
    sizes = [result["dataset"]["sizes"] for result in found]
    ratio = np.mean([size["validation"] / size["train"] for size in sizes])
    expected = overlapping_folds(network - cheap, ratio)
    assert (difference["low"], difference["high"]) == pytest.approx(tuple(expected.interval[1:]))
    assert f"validation_accuracy_baseline={cheap.mean():.4f} " in capsys.readouterr().out
    write_folds_report(run.folder, run.report_path)
    page = run.report_path.read_text()
    assert "The network beside its baseline" in page
    assert "corrected Student over 3 folds" in page
    assert "The test split was not read" not in page


def test_the_test_split_is_divided_only_with_folds(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(experiment, ["--folds-with-test"])
    assert "--folds-with-test needs --folds N" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(regression, ["--folds", "3", "--folds-with-test"])
    assert "line has no test split to divide; leave --folds-with-test out" in capsys.readouterr().err


def test_a_folder_in_use_or_a_damaged_record_is_one_line(tmp_path, mesh1):
    folder = tmp_path / "all"
    folder.mkdir()
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="is in use by another process"):
            cross_validate(run_in(folder, experiment=regression()), mesh1, num_folds=3)
    (folder / "folds.json").write_bytes(b"\0" * 50)
    with pytest.raises(UserError, match="folds.json is damaged"):
        cross_validate(run_in(folder, experiment=regression()), mesh1, num_folds=3)
