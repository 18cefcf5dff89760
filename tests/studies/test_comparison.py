"""Comparisons of runs: what differs, the paired tests, and that nothing is claimed without evidence."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from dl.errors import UserError
from dl.evaluation.paired import NO_DIFFERENCE, NO_DIRECTION, NOT_TESTED
from dl.runs.predictions import ClassificationOutcomes, Predictions
from dl.runs.tables import Table
from dl.studies.compare import compare_runs
from dl.studies.comparison import (
    Evidence,
    compare,
    differences_in_setup,
)

RECORD = {
    "experiment": "experiments.x",
    "code": "c" * 64,
    "options": {"learning_rate": 0.1, "seed": 0},
    "versions": {"jax": "0.10.2"},
    "commit": "a" * 40,
    "uncommitted_changes": False,
}
RESULT = {
    "seed": 0,
    "metrics": {"test": {"accuracy": 0.9, "loss": 0.3}},
    "steps": 10,
    "num_parameters": 26,
    "dataset": {"name": "d", "version": "1.0.0", "checksum": "e" * 64, "sizes": {"train": 50, "test": 200}},
    "devices": ["cpu"],
    "mesh": "data=1",
}


def evidence(name="a", accuracy=0.9, loss=0.3, seed=0, predictions=None, **options):
    record, result = copy.deepcopy(RECORD), copy.deepcopy(RESULT)
    record["options"] |= {"seed": seed, **options}
    result |= {"seed": seed, "metrics": {"test": {"accuracy": accuracy, "loss": loss}}}
    return Evidence(name, record, result, predictions)


def predictions_of(is_right, seed=0):
    """Two classes; the label is predicted where `is_right`. The rows are in an order of their own."""
    index = np.random.default_rng(seed).permutation(len(is_right))
    label = np.arange(len(is_right)) % 2
    predicted = np.where(is_right, label, 1 - label)
    log_probabilities = np.log(np.where(np.eye(2)[predicted] > 0, 0.8, 0.2)).astype(np.float32)
    rows = {"index": index, "label": label[index], "log_probabilities": log_probabilities[index]}
    return {"split": np.array("test"), **rows}


def rights(only_a, only_b, size=200):
    is_right_a, is_right_b = np.ones(size, bool), np.ones(size, bool)
    is_right_b[:only_a] = False
    is_right_a[only_a : only_a + only_b] = False
    return is_right_a, is_right_b


RIGHT_A, RIGHT_B = rights(3, 20)


def accuracy_of(differences):
    return next(row for row in differences if row.metric == "accuracy")


@pytest.mark.parametrize(
    ("only_a", "only_b", "verdict"),
    [(3, 20, "better"), (20, 3, "worse"), (8, 12, NO_DIFFERENCE), (0, 0, NO_DIFFERENCE)],
)
def test_the_same_examples_are_compared_by_mcnemar(only_a, only_b, verdict):
    is_right_a, is_right_b = rights(only_a, only_b)
    a = evidence("a", is_right_a.mean(), predictions=predictions_of(is_right_a, 0))
    b = evidence("b", is_right_b.mean(), predictions=predictions_of(is_right_b, 1))
    row = accuracy_of(compare([a], [b]))
    assert row.verdict == verdict
    assert row.difference.estimate == pytest.approx(is_right_b.mean() - is_right_a.mean(), abs=1e-12)
    # Twice the smaller tail of a fair coin.
    tail = stats.binom.cdf(min(only_a, only_b), only_a + only_b, 0.5)
    assert row.p_value == pytest.approx(min(2 * tail, 1))


def losses_of(predictions):
    order = np.argsort(predictions["index"])
    label_N = predictions["label"][order]
    return -predictions["log_probabilities"][order][np.arange(len(label_N)), label_N]


def test_the_losses_of_the_same_examples_are_compared_by_students_paired_test():
    one, two = predictions_of(RIGHT_A, 0), predictions_of(RIGHT_B, 1)
    losses = losses_of(one), losses_of(two)
    a, b = (
        evidence(loss=float(each.mean()), predictions=p) for each, p in zip(losses, (one, two), strict=True)
    )
    row = next(row for row in compare([a], [b]) if row.metric == "loss")
    expected = stats.ttest_rel(losses[1], losses[0])
    assert row.p_value == pytest.approx(expected.pvalue)
    assert row.difference[1:] == pytest.approx(expected.confidence_interval(0.95))
    assert row.verdict == "better"
    # A loss with more in it than the log-probabilities is not tested by them.
    a.result["metrics"]["test"]["loss"] += 0.1
    row = next(row for row in compare([a], [b]) if row.metric == "loss")
    assert (row.p_value, row.test) == (None, "the loss is not the mean of what the predictions say")


@pytest.mark.parametrize(("only_a", "only_b"), [(5, 1), (6, 0), (5, 0), (9, 2), (10, 2), (0, 25), (3, 3)])
def test_better_is_only_what_both_the_interval_and_the_exact_test_say(only_a, only_b):
    is_right_a, is_right_b = rights(only_a, only_b)
    a = evidence("a", is_right_a.mean(), predictions=predictions_of(is_right_a, 0))
    b = evidence("b", is_right_b.mean(), predictions=predictions_of(is_right_b, 1))
    row = accuracy_of(compare([a], [b]))
    excludes = row.difference.low > 0 or row.difference.high < 0
    assert (row.verdict != NO_DIFFERENCE) == (excludes and row.p_value <= 0.05)
    assert row.difference.low < row.difference.estimate < row.difference.high


def test_a_metric_that_states_no_direction_is_neither_better_nor_worse():
    a, b = (
        [evidence(f"{name}{k}", value + k / 100, seed=k) for k in range(3)]
        for name, value in (("a", 0.5), ("b", 0.7))
    )
    for side in (a, b):
        for one in side:
            one.result["metrics"]["test"] = {"penalty": one.result["metrics"]["test"].pop("accuracy") ** 2}
    for stated, verdict in ((None, NO_DIRECTION), ("min", "worse"), ("max", "better")):
        for one in a:
            one.result["better"] = {"penalty": stated}
        assert compare(a, b)[0].verdict == verdict


def test_seeds_are_compared_by_students_paired_test():
    values_a, values_b = [0.90, 0.92, 0.91], [0.93, 0.94, 0.95]
    a = [evidence(f"a{k}", value, 0.3 - value / 10, seed=k) for k, value in enumerate(values_a)]
    b = [evidence(f"b{k}", value, 0.3 - value / 10, seed=k) for k, value in enumerate(values_b)]
    loss, accuracy = sorted(compare(a, b), key=lambda row: row.metric == "accuracy")
    expected = stats.ttest_rel(values_b, values_a)
    assert accuracy.p_value == pytest.approx(expected.pvalue)
    assert accuracy.difference[1:] == pytest.approx(expected.confidence_interval(0.95))
    assert (accuracy.verdict, loss.verdict) == ("better", "better")  # the loss is lower
    assert accuracy_of(compare(b, a)).verdict == "worse"
    # The order in which runs are given does not matter; 99.9 % is more than these three seeds show.
    assert accuracy_of(compare(a[::-1], b)) == accuracy
    assert accuracy_of(compare(a, b, 0.999)).verdict == NO_DIFFERENCE


def test_members_of_one_run_are_seeds():
    values_a, values_b = [0.90, 0.92], [0.93, 0.94]

    def members(values):
        result = copy.deepcopy(RESULT)
        metrics = [{"test": {"accuracy": value}} for value in values]
        result["members"] = [{"seed": k, "metrics": one} for k, one in enumerate(metrics)]
        return Evidence("run", RECORD, result)

    row = accuracy_of(compare([members(values_a)], [members(values_b)]))
    assert row.p_value == pytest.approx(stats.ttest_rel(values_b, values_a).pvalue)
    assert row.first == pytest.approx(0.91)


@pytest.mark.parametrize(
    ("a", "b", "reason"),
    [
        ([evidence()], [evidence()], "one seed, and no predictions to pair"),
        (
            [evidence(predictions=predictions_of(RIGHT_A))],
            [evidence(predictions={**predictions_of(RIGHT_B), "label": np.zeros(200, int)})],
            "different examples or labels",
        ),
        (
            [evidence(predictions=predictions_of(RIGHT_A))],
            [evidence(predictions=predictions_of(RIGHT_B[:100]))],
            "different examples or labels",
        ),
        (
            [evidence(seed=0), evidence(seed=1)],
            [evidence(seed=2), evidence(seed=3)],
            "the seeds are not the same on both sides",
        ),
        (
            [evidence(seed=0, accuracy=0.5), evidence(seed=1, accuracy=0.25)],
            [evidence(seed=0, accuracy=0.75), evidence(seed=1, accuracy=0.5)],
            "no spread to judge it by",
        ),
        (
            [evidence(seed=0), evidence(seed=1, accuracy=None)],
            [evidence(seed=0), evidence(seed=1)],
            "a run has diverged",
        ),
    ],
)
def test_without_pairs_nothing_is_claimed(a, b, reason):
    row = accuracy_of(compare(a, b))
    assert (row.verdict, row.difference, row.p_value) == (NOT_TESTED, None, None)
    assert reason in row.test


def test_what_differs_is_listed_and_nothing_else():
    a, b = evidence("a"), evidence("b", learning_rate=0.5, seed=3)
    b.record["versions"] = {"jax": "0.11.2"}
    b.record["code"] = "f" * 64
    b.result["devices"] = ["NVIDIA H100", "NVIDIA H100"]
    b.result["dataset"]["sizes"]["train"] = 40
    rows = {row[0]: list(row[1:]) for row in differences_in_setup([[a], [b]]).rows}
    assert rows == {
        "learning_rate": ["0.1", "0.5"],
        "code": ["c" * 12 + "…", "f" * 12 + "…"],
        "seed": ["0", "3"],
        "train examples": ["50", "40"],
        "jax": ["0.10.2", "0.11.2"],
        "devices": ["cpu", "NVIDIA H100"],
    }
    assert differences_in_setup([[a], [a]]).rows == [["nothing", "", ""]]


def test_tables_escape_what_they_hold():
    table = Table("t", ["", "a_b"], [["x|y", "50 % & {1}\\"]])
    assert table.to_markdown().splitlines()[2:] == ["|  | a_b |", "|---|---:|", "| x\\|y | 50 % & {1}\\ |"]
    lines = table.to_latex().splitlines()
    assert lines[1] == r"\begin{tabular}{lr}"
    assert lines[3] == r" & a\_b \\"
    assert lines[5] == r"x|y & 50 \% \& \{1\}\textbackslash{} \\"


def write(folder, evidence):
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(evidence.record))
    (folder / "result.json").write_text(json.dumps(evidence.result))
    if evidence.predictions is not None:
        order = np.argsort(evidence.predictions["index"])
        kept = evidence.predictions
        index, label, log_p = (kept[name][order] for name in ("index", "label", "log_probabilities"))
        Predictions("test", len(index), index, label, log_p, ("0", "1")).save(folder / "predictions.npz")
    return str(folder)


def test_the_command_prints_and_writes_tables(dl, tmp_path):
    first = evidence(accuracy=RIGHT_A.mean(), predictions=predictions_of(RIGHT_A))
    first.result["notice"] = "a copy of other data\nmore of that"
    a = write(tmp_path / "a", first)
    b = write(tmp_path / "b", evidence(accuracy=RIGHT_B.mean(), predictions=predictions_of(RIGHT_B), width=2))
    files = ["--markdown", str(tmp_path / "t.md"), "--latex", str(tmp_path / "t.tex")]
    status, out, _ = dl("compare", a, b, *files)
    assert status == 0
    p_value = stats.binomtest(3, 23).pvalue
    assert f"test accuracy: {b} is better than {a} by +0.0850, 95 % +" in out
    assert f"p={p_value:.2g}" in out
    assert "test loss: not tested (the loss is not the mean of what the predictions say)" in out
    assert "NOTE: a copy of other data\n" in out
    assert "| width | null | 2 |" in (tmp_path / "t.md").read_text()
    assert r"test accuracy & 0.9000 & 0.9850 & +0.0850" in (tmp_path / "t.tex").read_text()
    status, out, _ = dl("compare", a, a, a)
    assert f"test accuracy: no difference shown between {a} and {a} by +0.0000, 97.5 % " in out


def test_it_is_a_function_that_returns_differences(tmp_path):
    a, b = (Path(write(tmp_path / name, evidence(accuracy=x))) for name, x in (("a", 0.9), ("b", 0.8)))
    found = compare_runs(a, [b])
    row = next(row for row in found.differences[0] if row.metric == "accuracy")
    assert (row.first, row.other, row.difference) == (0.9, 0.8, None)
    assert [table.title for table in found.tables] == ["what differs", f"{b} against {a}"]
    for sides, message in (
        ((a,), "needs at least two runs"),
        ((a, []), "a side of the comparison has no run"),
    ):
        with pytest.raises(UserError, match=message):
            compare_runs(*sides)


def test_many_runs_have_a_row_each(dl, tmp_path):
    first = write(tmp_path / "first", evidence(accuracy=RIGHT_A.mean(), predictions=predictions_of(RIGHT_A)))
    predicted = [RIGHT_B, RIGHT_A, RIGHT_A] * 3
    runs = [
        write(tmp_path / f"{k}", evidence(accuracy=right.mean(), predictions=predictions_of(right), width=k))
        for k, right in enumerate(predicted)
    ]
    few, many = (compare_runs(*map(Path, [first, *others])) for others in (runs[:6], runs))
    assert len(few.tables) == 7
    setup, accuracy, loss = many.tables
    assert setup.header == ("", "width")
    assert [tuple(row) for row in setup.rows[:3]] == [(first, "null"), (runs[0], "0"), (runs[1], "1")]
    assert accuracy.title == f"test accuracy against {first} ({RIGHT_A.mean():.4f})"
    assert [row[0] for row in accuracy.rows] == [row[0] for row in loss.rows] == runs
    assert all(len(row) == len(accuracy.header) for row in accuracy.rows)
    whole = [row for rows in many.differences for row in rows if row.metric == "accuracy"]
    assert [row[-1] for row in accuracy.rows] == [row.verdict for row in whole]
    assert [row[1] for row in accuracy.rows] == [f"{row.other:.4f}" for row in whole]
    status, out, _ = dl("compare", first, *runs)
    assert status == 0
    assert f"test accuracy against {first}: 6 {NO_DIFFERENCE}, 3 better" in out
    assert out.count("against") == 4


def test_outcomes_are_paired_as_all_probabilities_are():
    rng = np.random.default_rng(0)
    sides = []
    for seed in range(2):
        logits = rng.normal(size=(200, 5)).astype(np.float32)
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        label = np.arange(200, dtype=np.int32) % 5
        full = Predictions("test", 200, np.arange(200), label, log_p, tuple("abcde"))
        outcomes = ClassificationOutcomes(
            "test", 200, full.index, **vars(full.outcomes), class_names=full.class_names
        )
        figures = {
            "accuracy": (log_p.argmax(1) == label).mean(),
            "loss": -log_p[np.arange(200), label].mean(),
        }
        sides.append([evidence(str(seed), **figures, predictions=vars(one)) for one in (full, outcomes)])
    (full_a, outcomes_a), (full_b, outcomes_b) = sides
    expected = compare([full_a], [full_b])
    assert {row.test.split()[0] for row in expected} == {"McNemar,", "paired"}
    assert compare([outcomes_a], [outcomes_b]) == expected
    assert compare([full_a], [outcomes_b]) == expected


def test_several_runs_on_a_side(dl, tmp_path):
    a = [write(tmp_path / f"a{k}", evidence(accuracy=0.9 + k / 100, seed=k)) for k in range(3)]
    b = [write(tmp_path / f"b{k}", evidence(accuracy=0.93 + k / 90, seed=k, width=2)) for k in range(3)]
    status, out, _ = dl("compare", ",".join(a), ",".join(b))
    assert status == 0
    assert f"test accuracy: {b[0]} + 2 is better than {a[0]} + 2 by +0.0311" in out
    status, _, err = dl("compare", f"{a[0]},{b[1]}", a[2])
    assert (status, "are on one side but differ in width" in err) == (2, True)
    status, _, err = dl("compare", f"{a[0]},{a[0]}", a[2])
    assert (status, "has seed 0 twice on its side" in err) == (2, True)


def test_mistakes_are_one_line(dl, tmp_path):
    a = write(tmp_path / "a", evidence())
    other = evidence()
    other.result["dataset"]["checksum"] = "9" * 64
    b = write(tmp_path / "b", other)
    unfinished = tmp_path / "c"
    unfinished.mkdir()
    (unfinished / "run.json").write_text("{}")
    broken = write(tmp_path / "d", evidence())
    (tmp_path / "d" / "predictions.npz").write_bytes(b"PK")
    folds = tmp_path / "e"
    folds.mkdir()
    (folds / "folds.json").write_text("{}")
    for argv, message in (
        ([a], "compare needs RUN_B (the folder of a run); write python -m dl compare RUN_A RUN_B …"),
        ([a, b], "were measured on different data, d:1.0.0 (sha256 eeeeeeeeeeee) and d:1.0.0 (sha256 9999"),
        ([a, str(unfinished)], "has not finished; run its command again first"),
        ([a, str(tmp_path / "none")], "does not hold a run; give the folder of a run"),
        ([a, str(folds)], f"such as {folds}/fold-1"),
        ([a, broken], "predictions.npz does not hold predictions"),
        ([a, ","], "a side of the comparison has no run"),
        ([a, a, "--latx", "x"], "there is no option --latx; did you mean --latex?"),
        ([a, a, "--latex", "/nowhere/t.tex"], "/nowhere/t.tex cannot be written"),
    ):
        status, _, err = dl("compare", *argv)
        assert status == 2
        assert message in err
        assert err.count("\n") == 1


def test_means_over_other_tokens_are_not_compared():
    first, other = evidence(), evidence("b", loss=0.2)
    for one, tokenizer in ((first, "x"), (other, "y")):
        one.record["data"] = {"tokenizer": tokenizer}
        one.result["units"] = {"loss": "nats a token"}
    found = {row.metric: row for row in compare([first], [other])}
    assert found["loss"].test == found["accuracy"].test == "their tokenizers differ; compare bits_per_byte"
    assert found["loss"].verdict == NOT_TESTED
    other.record["data"] = first.record["data"]
    assert "tokenizers" not in compare([first], [other])[0].test
