"""Folds: disjoint, covering and stratified; trained and evaluated without a look at the test split."""

import dataclasses
import fcntl
import json
import shutil
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.model_selection import KFold, StratifiedKFold

from dl import Experiment, KeepBest, PositiveInt, main, optimizers, task
from dl.data import ArraySource, ArraySplits, text_classification
from dl.data.folds import Folds, join, plain_folds, stratified_folds, take
from dl.data.images.decoding import to_unit_range
from dl.errors import UserError
from dl.evaluation.paired import overlapping_folds
from dl.metrics import Mean
from dl.models.mlp import MLP
from dl.report import write_folds_report
from dl.runs.run import Run
from dl.studies.cross_validation import cross_validate
from dl.types import Aux, BaselineScores, Identity
from dl.warm_start import FromExperiment
from tests.helpers import run_in


@given(st.lists(st.integers(0, 3), min_size=8, max_size=60), st.integers(2, 5))
@settings(deadline=None, max_examples=60)
def test_folds_are_disjoint_cover_and_have_the_counts_of_scikit_learn(labels, num_folds):
    labels = np.array(sorted(labels))  # so that scikit-learn numbers the classes by size too
    if np.unique(labels, return_counts=True)[1].min() < num_folds:
        return
    folds = stratified_folds(labels, num_folds)
    np.testing.assert_array_equal(np.sort(np.concatenate(folds)), np.arange(len(labels)))
    theirs = StratifiedKFold(num_folds).split(np.zeros(len(labels)), labels)
    for rows, (_, their_rows) in zip(folds, theirs, strict=True):
        np.testing.assert_array_equal(np.bincount(labels[rows]), np.bincount(labels[their_rows]))
    for label in np.unique(labels):
        assert np.ptp([(labels[rows] == label).sum() for rows in folds]) <= 1


def test_folds_are_mixed_and_always_the_same():
    labels = np.arange(40) % 2
    first, again = stratified_folds(labels, 4), stratified_folds(labels, 4)
    for rows, same in zip(first, again, strict=True):
        np.testing.assert_array_equal(rows, same)
    # Not every fourth row of a class: neighbours in the files may resemble one another.
    assert len(set(np.diff(first[0][first[0] % 2 == 0]).tolist())) > 1


class Streamed:
    """A source that is no array; what it reads is counted."""

    def __init__(self, source, may_be_read=True):
        self.source, self.may_be_read = source, may_be_read

    spec = property(lambda self: self.source.spec)

    def __len__(self):
        return len(self.source)

    def __getitem__(self, indices):
        assert self.may_be_read, "the test split was read"
        return self.source[indices]


IDENTITY = Identity("points", "1.0.0", "c" * 64, {"train": 22, "validation": 8, "test": 5})


@dataclasses.dataclass(frozen=True)
class Data:
    """Splits whose test split fails when a row is read."""

    train: object
    validation: object
    identity: Identity = IDENTITY
    provenance: str = "in memory"
    notice: str | None = "a caveat"
    preprocess: object = to_unit_range

    @property
    def evaluations(self):
        return {"validation": self.validation, "test": Streamed(points(5, 2), may_be_read=False)}


def points(size, seed):
    features = np.random.default_rng(seed).normal(size=(size, 3)).astype(np.float32)
    return ArraySource({"features": features, "label": np.arange(size, dtype=np.int32) % 2})


def data_of(wrap=lambda source: source):
    return Data(wrap(points(22, 0)), wrap(points(8, 1)))


@pytest.mark.parametrize("wrap", [lambda source: source, Streamed])
def test_each_fold_holds_out_its_rows_of_train_and_validation(wrap):
    whole = np.concatenate([points(22, 0).arrays["features"], points(8, 1).arrays["features"]])
    folds = Folds(data_of(wrap), 3)
    seen = []
    for k in range(3):
        fold = folds[k]
        assert set(fold.evaluations) == {"validation"}
        assert fold.identity.sizes == {"train": 20, "validation": 10}
        parts = [s[np.arange(len(s))]["features"] for s in (fold.train, fold.evaluations["validation"])]
        seen.append(parts[1])
        # Together the rows of both splits, each once.
        np.testing.assert_array_equal(np.sort(np.concatenate(parts), 0), np.sort(whole, 0))
    np.testing.assert_array_equal(np.sort(np.concatenate(seen), 0), np.sort(whole, 0))
    assert {folds[k].identity.name for k in range(3)} == {f"points/fold-{k}-of-3" for k in (1, 2, 3)}


def with_three_splits():
    return ArraySplits("points", points(22, 0), {"validation": points(8, 1), "test": points(5, 2)})


@pytest.mark.parametrize(
    ("with_test", "splits"), [(False, [(22, 0), (8, 1)]), (True, [(22, 0), (8, 1), (5, 2)])]
)
def test_the_test_split_is_divided_only_on_request(with_test, splits):
    whole = np.concatenate([points(*split).arrays["features"] for split in splits])
    folds = Folds(with_three_splits(), 3, with_test)
    parts = [folds[k].evaluations["validation"] for k in range(3)]
    held_out = np.concatenate([part[np.arange(len(part))]["features"] for part in parts])
    np.testing.assert_array_equal(np.sort(held_out, 0), np.sort(whole, 0))
    assert set(folds[0].evaluations) == {"validation"}


def test_views_give_any_rows_in_any_order():
    sources = [points(4, 0), points(3, 1)]
    arrays, streamed = join(sources), join([Streamed(source) for source in sources])
    index = np.array([6, 0, 3, 4, 0])
    for name in ("features", "label"):
        expected = np.concatenate([source.arrays[name] for source in sources])
        np.testing.assert_array_equal(arrays[index][name], expected[index])
        np.testing.assert_array_equal(streamed[index][name], expected[index])
        for source in (arrays, streamed):
            np.testing.assert_array_equal(
                take(source, np.array([5, 2]))[np.array([1, 0])][name], expected[[2, 5]]
            )
    assert streamed.spec == arrays.spec


@pytest.mark.parametrize(
    ("change", "num_folds", "message"),
    [
        ({}, 1, "folds=1 is out of range; it must be at least 2"),
        ({}, 31, "folds=31 is more than the number of examples; choose at most 30"),
        (
            {"label": np.zeros((22, 2), np.int32)},
            45,
            "folds=45 is more than the number",
        ),
        ({"label": np.zeros(22, np.float32)}, 1, "folds=1 is out of range; it must be at least 2"),
    ],
)
def test_mistakes_are_one_line(change, num_folds, message):
    data = data_of()
    if change:
        whole = ArraySource({**data.train.arrays, **change})
        data = dataclasses.replace(data, train=whole, validation=whole)
    with pytest.raises(UserError, match=message):
        Folds(data, num_folds)


@pytest.mark.parametrize("num_folds", [2, 3, 7, 23])
def test_plain_folds_are_disjoint_cover_and_have_the_sizes_of_scikit_learn(num_folds):
    folds = plain_folds(23, num_folds)
    np.testing.assert_array_equal(np.sort(np.concatenate(folds)), np.arange(23))
    assert [len(rows) for rows in folds] == [len(rows) for _, rows in KFold(num_folds).split(np.zeros(23))]
    assert num_folds == 23 or len(set(np.diff(folds[0]).tolist())) > 1


NO_CLASS = "there is no class of each example as `label`"


@pytest.mark.parametrize(
    ("label", "why_not"),
    [
        (np.arange(22, dtype=np.uint8) % 3, None),
        ((np.arange(22) % 3)[:, None], None),
        (np.linspace(0, 1, 22, dtype=np.float32), NO_CLASS),  # of a regression
        (np.arange(22), "only 2 examples have the label 0"),  # likewise, in whole numbers
        (np.zeros((22, 4), np.int32), NO_CLASS),  # several classes each, or a mask
        (None, NO_CLASS),  # of an autoencoder or a language model
    ],
)
@pytest.mark.parametrize("wrap", [lambda source: source, Streamed])
def test_folds_are_stratified_where_there_are_classes(label, why_not, wrap):
    features = {"features": np.arange(22, dtype=np.float32)} | ({} if label is None else {"label": label})
    source = wrap(ArraySource(features))
    folds = Folds(dataclasses.replace(data_of(), train=source, validation=source), 3)
    assert folds.unstratified == why_not
    held_out = [folds[k].evaluations["validation"] for k in range(3)]
    rows = [part[np.arange(len(part))]["features"] for part in held_out]
    np.testing.assert_array_equal(np.sort(np.concatenate(rows)), np.repeat(np.arange(22), 2))
    if why_not is None:
        counts = [np.bincount(part[np.arange(len(part))]["label"].ravel()) for part in held_out]
        assert np.ptp(counts, axis=0).max() <= 1


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


def test_folds_share_the_tokenizer_of_their_data():
    text = text_classification("python_topics", tokenizer="bytes")
    assert Folds(text, 2)[0].tokenizer is text.tokenizer
    assert Folds(data_of(), 2)[0].tokenizer is None


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


def test_a_class_needs_as_many_examples_as_there_are_folds():
    with pytest.raises(UserError, match="folds=16 is more than the 15 examples of class 0; choose"):
        stratified_folds(np.arange(30) % 2, 16)
