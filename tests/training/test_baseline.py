"""The baseline of an experiment: in result.json, on the console, in the report and in comparisons."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from scipy import stats

from dl.errors import UserError
from dl.evaluation.figure import Figure
from dl.evaluation.intervals import Interval
from dl.evaluation.paired import PairedTest, newcombe_paired
from dl.evaluation.translation import Scores
from dl.runs.baseline import baseline_lines
from dl.runs.console import Console
from dl.runs.folder import RunFolder
from dl.runs.scores import ScoredBaseline, add_scores
from dl.system.json_files import write_json
from dl.training.baseline import measure_baseline
from dl.training.identity import describe
from dl.training.loop import train, train_run
from dl.types import BaselineScores
from tests.helpers import DATA, EXPERIMENT, run_in

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
def trained(mesh1, tmp_path_factory):
    """Returns the result of a run in a folder, and its last line on the console."""
    lines = []
    console = Console(is_quiet=True)
    console.line = lines.append
    experiment = with_baseline(scores(0.5))
    result = train_run(run_in(tmp_path_factory.mktemp("run"), experiment=experiment), mesh1, console=console)
    return result, lines


def test_the_result_states_it_and_the_paired_difference(trained):
    result, lines = trained
    found = result.record["baselines"][0]
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
    assert lines[-2] == baseline_lines(result.record)[-1]
    assert " test_accuracy_baseline=0.5385" in lines[-1]
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
    assert line.startswith(f"test accuracy 0.7692, baseline {np.ceil(13 * rate) / 13:.4f} (a coin)")
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
    difference = record["baselines"][0]["differences"]["test"]["accuracy"]
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
    assert "baselines" not in record
    assert words in record["warnings"][0]
    assert words in told


def test_examples_that_do_not_weigh_the_same_are_not_paired():
    def other_tokens(data):
        return BaselineScores("other", {"test": {"accuracy": np.full((13, 2), 2.0)}})

    difference = measured(other_tokens)[0]["baselines"][0]["differences"]["test"]["accuracy"]
    assert "count different" in difference["test"]
    assert difference["verdict"] == "not tested"


def test_report_and_comparison_show_it(trained, tmp_path, dl):
    for name in "ab":
        shutil.copytree(trained[0].folder, tmp_path / name)
    status, out, _ = dl("compare", str(tmp_path / "a"), str(tmp_path / "b"))
    assert status == 0
    assert "beside the baseline" in out
    assert "a coin" in out
    dl("report", str(tmp_path / "a"))
    assert "The network beside its baseline" in (tmp_path / "a" / "report.html").read_text()
    damaged = json.loads((tmp_path / "a" / "result.json").read_text())
    damaged["baselines"][0]["metrics"] = 3
    write_json(tmp_path / "a" / "result.json", damaged)
    dl("report", str(tmp_path / "a"), "--out", str(tmp_path / "damaged.html"))
    assert "The baseline: result.json" in (tmp_path / "damaged.html").read_text()


def test_it_is_no_part_of_the_identity_of_a_run():
    assert describe(with_baseline(scores(0.5))) == describe(EXPERIMENT)


def test_it_can_be_left_out(mesh1):
    record = train(
        with_baseline(fails), mesh=mesh1, with_baseline=False, console=Console(is_quiet=True)
    ).record
    assert "baselines" not in record
    assert "warnings" not in record


def test_scores_of_texts_are_added_to_the_result(trained, tmp_path):
    shutil.copytree(trained[0].folder, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    before = run.result
    figures = {"bleu": Figure(31.0, 29.0, 33.0, "max", "bootstrap")}
    scores_of = Scores(figures, {"bleu": "0 to 100"}, {"bleu": "tok:13a|version:2"})
    copied = scores_of._replace(figures={"bleu": figures["bleu"]._replace(value=5.0)})
    tested = {"bleu": PairedTest("paired bootstrap", Interval(26.0, 24.0, 28.0), 0.001)}
    for _ in range(2):  # the second call replaces what the first has added
        add_scores(run, "test", scores_of, ScoredBaseline("the source", 0.1, copied, tested))
    result = run.result
    assert result["metrics"]["test"] == {**before["metrics"]["test"], "bleu": 31.0}
    assert result["intervals"]["test"]["bleu"] == [29.0, 33.0]
    assert result["units"]["bleu"] == "0 to 100"
    assert result["signatures"] == {"bleu": "tok:13a|version:2"}
    assert baseline_lines(result)[-1] == (
        "test bleu 31.0000, baseline 5.0000 (the source), difference +26.0000, 95 % +24.0000..+28.0000 "
        "(paired bootstrap): the network is better than its baseline"
    )
    assert len(result["baselines"]) == 2
    assert {name: result[name] for name in ("digests", "run_id")} == {
        name: before[name] for name in ("digests", "run_id")
    }
