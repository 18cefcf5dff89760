"""The baseline of an experiment: in result.json, on the console, in the report and in comparisons."""

import dataclasses
import json

import numpy as np
import pytest
from scipy import stats

from dl.errors import UserError
from dl.evaluation.paired import newcombe_paired
from dl.runs.baseline import baseline_lines
from dl.runs.console import Console
from dl.system.json_files import write_json
from dl.training.baseline import measure_baseline
from dl.training.loop import train
from dl.types import BaselineScores
from tests.helpers import DATA, EXPERIMENT, train_in

LABELS = {name: source.arrays["label"] for name, source in DATA.evaluations.items()}
SIZES = {name: len(labels) for name, labels in LABELS.items()}


def scores(rate, name="a coin"):
    """Returns a baseline that is right on the first part of each split."""

    def baseline(data):
        hits = {split: np.arange(size) < rate * size for split, size in SIZES.items()}
        return BaselineScores(
            name, {split: {"accuracy": np.stack([h, np.ones(len(h))], -1)} for split, h in hits.items()}
        )

    return baseline


def with_baseline(baseline, **changes):
    return dataclasses.replace(EXPERIMENT, baseline=baseline, **changes)


@pytest.fixture(scope="module")
def result(mesh1):
    return train(with_baseline(scores(0.5)), mesh=mesh1, console=Console(is_quiet=True))


def test_the_result_states_it_and_the_paired_difference(result):
    found = result.record["baseline"]
    hits = np.arange(13) < 6.5
    assert found["name"] == "a coin"
    assert found["metrics"]["test"]["accuracy"] == pytest.approx(hits.mean())
    is_right = result.predict(DATA.evaluations["test"].arrays["features"]).argmax(1) == LABELS["test"]
    only, other = int((is_right & ~hits).sum()), int((hits & ~is_right).sum())
    both = int((is_right & hits).sum())
    expected = newcombe_paired(only, other, both, 13 - only - other - both)
    difference = found["differences"]["test"]["accuracy"]
    assert [difference[name] for name in ("estimate", "low", "high")] == pytest.approx(list(expected))
    assert difference["p_value"] == pytest.approx(stats.binomtest(only, only + other).pvalue)
    # Of the validation split no values of each example are kept.
    on_validation = found["differences"]["validation"]["accuracy"]
    assert on_validation["verdict"] == "not tested"
    assert on_validation["estimate"] == pytest.approx(result.metrics["validation"]["accuracy"] - 11 / 21)


IS_RIGHT = np.arange(13) < 10  # of a network


def measured(baseline, is_right=IS_RIGHT):
    """Returns the record of a network whose test predictions are right as given, and warnings."""
    examples = np.stack([np.float32(is_right), np.ones(np.shape(is_right), np.float32)], -1)
    record = {"metrics": {"test": {"accuracy": is_right.mean()}}, "better": {"accuracy": "max"}}
    told = []
    measure_baseline(with_baseline(baseline), record, {"accuracy": examples}, told.append)
    return record, told


@pytest.mark.parametrize(
    ("rate", "words"),
    [
        (0.0, "better than its"),
        (0.6, "NOT shown to be better than its"),
        (1.0, "NOT shown to be better than its"),
    ],
)
def test_a_sentence_says_whether_the_network_is_better(rate, words):
    (line,) = baseline_lines(measured(scores(rate))[0])
    assert line.startswith(f"test accuracy 0.7692, baseline {np.ceil(13 * rate) / 13:.4f} (a coin, ")
    assert line.endswith(f": the network is {words} baseline")


def test_a_network_that_loses_is_said_to_lose():
    (line,) = baseline_lines(measured(scores(1.0), np.arange(13) < 4)[0])
    assert line.endswith("the network is WORSE than its baseline")


def test_several_seeds_are_compared_over_the_seeds():
    is_right = np.stack([IS_RIGHT, np.arange(13) < 9])
    record = {
        "metrics": {"test": {"accuracy": is_right.mean()}},
        "intervals": {"test": {"accuracy": [0.6, 0.9]}},
        "better": {"accuracy": "max"},
    }
    examples = np.stack([np.float32(is_right), np.ones((2, 13), np.float32)], -1)
    measure_baseline(with_baseline(scores(0.3)), record, {"accuracy": examples}, print)
    difference = record["baseline"]["differences"]["test"]["accuracy"]
    assert difference["test"].startswith("Student over 2 seeds")
    assert [difference["low"], difference["high"]] == pytest.approx([0.6 - 4 / 13, 0.9 - 4 / 13])
    assert difference["verdict"] == "better"


def fails(data):
    raise UserError("the extra text is missing")


def has_another_size(data):
    return BaselineScores("short", {"test": {"accuracy": np.ones((3, 2))}})


@pytest.mark.parametrize(
    ("baseline", "words"), [(fails, "the extra text is missing"), (has_another_size, "(3, 2)")]
)
def test_a_baseline_that_fails_costs_only_itself(baseline, words):
    record, (told,) = measured(baseline)
    assert "baseline" not in record
    assert words in record["warnings"][0]
    assert words in told


def test_examples_that_do_not_weigh_the_same_are_not_paired():
    def other_tokens(data):
        return BaselineScores("other", {"test": {"accuracy": np.full((13, 2), 2.0)}})

    difference = measured(other_tokens)[0]["baseline"]["differences"]["test"]["accuracy"]
    assert "count different" in difference["test"]
    assert difference["verdict"] == "not tested"


def test_report_and_comparison_show_it_and_the_run_stays_the_same(tmp_path, mesh1, dl, capsys):
    train_in(tmp_path / "a", mesh1, with_baseline(scores(0.5)), console=Console())
    assert " test_accuracy_baseline=0.5385" in capsys.readouterr().out.splitlines()[-1]
    train_in(tmp_path / "b", mesh1, with_baseline(fails), with_baseline=False)
    assert "warnings" not in json.loads((tmp_path / "b" / "result.json").read_text())
    status, out, _ = dl("compare", str(tmp_path / "a"), str(tmp_path / "b"))
    assert status == 0
    assert "beside the baseline" in out
    assert "a coin" in out
    dl("report", str(tmp_path / "a"))
    page = (tmp_path / "a" / "report.html").read_text()
    assert "The network beside its baseline" in page
    runs = [json.loads((tmp_path / name / "run.json").read_text()) for name in "ab"]
    assert runs[0]["settings"] == runs[1]["settings"]
    assert runs[0]["traced"] == runs[1]["traced"]
    damaged = json.loads((tmp_path / "a" / "result.json").read_text())
    damaged["baseline"]["metrics"] = 3
    write_json(tmp_path / "a" / "result.json", damaged)
    dl("report", str(tmp_path / "a"), "--out", str(tmp_path / "damaged.html"))
    assert "The baseline: result.json" in (tmp_path / "damaged.html").read_text()
