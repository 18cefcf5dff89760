"""The whole loop on a small problem: what it leaves, and that stopping changes nothing."""

import collections
import dataclasses
import json
import re
import signal

import jax
import numpy as np
import pytest

from dl import optimizers
from dl.errors import UserError
from dl.runs.console import Console
from dl.runs.log import read_metrics
from dl.runs.provenance import code_digest
from dl.system.json_files import read_json
from dl.training.signals import Stopped
from tests.helpers import (
    DATA,
    EXPERIMENT,
    SignallingConsole,
    losses_of,
    run_in,
    source_of,
    train_in,
    without_timing,
)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, mesh1):
    folder = tmp_path_factory.mktemp("run") / "whole"
    return folder, train_in(folder, mesh1)


def test_the_result_says_what_happened(uninterrupted):
    folder, result = uninterrupted
    assert read_json(folder / "result.json") == result
    assert result["steps"] == 12
    assert set(result["metrics"]) == {"test", "validation"}
    assert 0 <= result["metrics"]["test"]["accuracy"] <= 1
    assert result["num_parameters"] == 3 * 8 + 8 + 8 * 2 + 2
    assert re.fullmatch(r"[0-9a-f]{64}", result["params_digest"])
    assert result["dataset"]["sizes"] == {"train": 50, "validation": 21, "test": 13}
    assert result["seconds"] > 0
    assert result["examples_per_second"] > 0


def test_run_json_says_what_was_asked_for(uninterrupted):
    record = json.loads((uninterrupted[0] / "run.json").read_text())
    assert record["experiment"] == "experiments.test"
    assert record["options"] == {"num_steps": 12}
    assert record["versions"]["jax"] == jax.__version__
    assert record["dataset"]["checksum"] == DATA.identity.checksum
    assert len(record["starts"]) == 1


def test_metrics_have_the_documented_lines(uninterrupted):
    lines = read_metrics(uninterrupted[0] / "metrics.jsonl")
    kinds = [line["kind"] for line in lines]
    assert kinds.count("train") == 12
    assert kinds.count("epoch") == kinds.count("validation") == 3
    assert kinds.count("test") == 1
    assert kinds[-1] == "test"
    assert [line["epoch"] for line in lines if line["kind"] == "epoch"] == [1, 2, 3]
    for line in lines:
        assert {"step", "epoch", "loss", "accuracy"} <= set(line)


def test_the_epoch_line_is_the_mean_over_all_examples_and_the_short_batch_counts_by_its_size(
    uninterrupted,
):
    lines = read_metrics(uninterrupted[0] / "metrics.jsonl")
    batches = [line["loss"] for line in lines if line["kind"] == "train" and line["step"] <= 4]
    epoch = next(line["loss"] for line in lines if line["kind"] == "epoch")
    assert epoch == pytest.approx(np.average(batches, weights=[16, 16, 16, 2]), rel=1e-6)
    assert epoch != pytest.approx(np.mean(batches), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("eval_batch_size", [5, 13, 64])
def test_evaluation_does_not_depend_on_batch_size_or_devices(uninterrupted, tmp_path, mesh8, eval_batch_size):
    experiment = dataclasses.replace(EXPERIMENT, eval_batch_size=eval_batch_size)
    result = train_in(tmp_path / "run", mesh8, experiment)
    expected = uninterrupted[1]["metrics"]
    for split, size in (("validation", 21), ("test", 13)):
        assert result["metrics"][split]["loss"] == pytest.approx(expected[split]["loss"], rel=1e-4)
        hits = result["metrics"][split]["accuracy"] * size
        assert hits == pytest.approx(round(hits), abs=1e-6)


@pytest.mark.slow
def test_one_and_eight_devices_have_the_same_loss_curve(uninterrupted, tmp_path, mesh8):
    train_in(tmp_path / "run", mesh8)
    one, eight = losses_of(uninterrupted[0]), losses_of(tmp_path / "run")
    assert one.keys() == eight.keys()
    assert max(abs(one[step] - eight[step]) for step in one) < 1e-5


@pytest.fixture
def compilations():
    """Counts (event, function) pairs: traces and compilations of every jitted function."""
    events = collections.Counter()

    def listen(event, duration, **facts):
        events[event.rpartition("/")[2], re.sub(r"jit\((.*)\)", r"\1", facts.get("fun_name", ""))] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    return events


def test_each_step_is_traced_and_compiled_once(tmp_path, mesh1, compilations):
    train_in(tmp_path / "run", mesh1)
    for step in ("train_step", "train_steps", "eval_step"):
        assert compilations["jaxpr_trace_duration", step] == 1
    for step in ("train_steps", "eval_step"):  # the steps of training are fused
        assert compilations["backend_compile_duration", step] == 1
    assert compilations["backend_compile_duration", "train_step"] == 0


@pytest.mark.parametrize("step", [1, 4, 7, 12])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_goes_on_to_the_same_end(uninterrupted, tmp_path, mesh1, step, number):
    folder = tmp_path / "run"
    with pytest.raises(Stopped, match="to resume: python -m experiments.test") as caught:
        train_in(folder, mesh1, console=SignallingConsole(step, number))
    assert caught.value.number == number
    assert not (folder / "result.json").exists()
    result = train_in(folder, mesh1)
    expected_folder, expected = uninterrupted
    assert result["params_digest"] == expected["params_digest"]
    assert result["metrics"] == expected["metrics"]
    assert without_timing(folder) == without_timing(expected_folder)
    assert len(json.loads((folder / "run.json").read_text())["starts"]) == 2


@pytest.mark.slow
def test_what_a_killed_process_wrote_after_its_checkpoint_is_cut_off(uninterrupted, tmp_path, mesh1):
    folder = tmp_path / "run"
    with pytest.raises(Stopped):
        train_in(folder, mesh1, console=SignallingConsole(5))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 9, "loss": 0.1}\n{"kind": "tra')
    train_in(folder, mesh1)
    assert losses_of(folder) == losses_of(uninterrupted[0])


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_devices(uninterrupted, tmp_path, mesh1, mesh8):
    folder = tmp_path / "run"
    with pytest.raises(Stopped):
        train_in(folder, mesh8, console=SignallingConsole(5))
    train_in(folder, mesh1)
    one, mixed = losses_of(uninterrupted[0]), losses_of(folder)
    assert max(abs(one[step] - mixed[step]) for step in one) < 1e-5


def test_a_finished_run_is_not_repeated(uninterrupted, mesh1):
    folder, result = uninterrupted
    before = (folder / "metrics.jsonl").read_bytes()
    assert train_in(folder, mesh1) == result
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_another_configuration_in_the_same_folder_is_refused(uninterrupted, mesh1):
    with pytest.raises(UserError, match="num_steps: 12 there, 13 here") as caught:
        train_in(uninterrupted[0], mesh1, options={"num_steps": 13})
    assert "\n" not in str(caught.value)


def test_other_data_in_the_same_folder_is_refused(uninterrupted, mesh1):
    other = dataclasses.replace(DATA, train=source_of(50, 9))
    experiment = dataclasses.replace(EXPERIMENT, data=other)
    with pytest.raises(UserError, match="checksum"):
        train_in(uninterrupted[0], mesh1, experiment)


def test_a_folder_with_other_things_in_it_is_refused(tmp_path, mesh1):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not empty and does not hold a run"):
        train_in(tmp_path, mesh1)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_in_use_is_refused(tmp_path, mesh1):
    run = run_in(tmp_path / "run")
    run.open({}, mesh1)
    with pytest.raises(UserError, match="in use by another process"):
        run_in(tmp_path / "run").open({}, mesh1)
    run.close()


@pytest.mark.parametrize("split", ["train", "validation"])
def test_an_empty_split_is_one_line(tmp_path, mesh1, split):
    empty = source_of(0, 0)
    data = (
        dataclasses.replace(DATA, train=empty)
        if split == "train"
        else dataclasses.replace(DATA, evaluations={"validation": empty})
    )
    with pytest.raises(UserError, match=f"the {split} split of halfspace is empty"):
        train_in(tmp_path / "run", mesh1, dataclasses.replace(EXPERIMENT, data=data))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_batch_larger_than_the_split_is_one_line(tmp_path, mesh1):
    with pytest.raises(UserError, match="batch_size=5000 is larger than the training split"):
        train_in(tmp_path / "run", mesh1, dataclasses.replace(EXPERIMENT, batch_size=5000))
    result = train_in(tmp_path / "run", mesh1, dataclasses.replace(EXPERIMENT, batch_size=64))
    assert result["epochs"] == 12  # a tiny set under a default batch size is padded


@pytest.mark.slow
def test_a_loss_that_is_no_number_ends_the_run_in_one_line(tmp_path, mesh1):
    experiment = dataclasses.replace(EXPERIMENT, tx=optimizers.sgd(1e30))
    with pytest.raises(UserError, match="the loss became .* lower the learning rate") as caught:
        train_in(tmp_path / "run", mesh1, experiment)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "result.json").exists()
    json.dumps(read_metrics(tmp_path / "run" / "metrics.jsonl"), allow_nan=False)


def test_changed_code_is_another_run(uninterrupted, mesh1, monkeypatch):
    folder = uninterrupted[0]
    monkeypatch.setattr("dl.runs.definition.code_of", lambda fn: "abc")
    with pytest.raises(UserError, match="code: .* there, .* here"):
        train_in(folder, mesh1)


def test_comments_docstrings_and_layout_are_not_code(tmp_path):
    texts = [
        '"""Doc."""\ndef f(x: int = 1):\n    """Says."""\n    return x  # why\n',
        '"""Other."""\n\n\ndef f( x:int=1 ):\n    """It."""\n    return x\n',
        '"""Doc."""\ndef f(x: int = 2):\n    """Says."""\n    return x\n',
    ]
    digests = []
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.py").write_text(text)
        digests.append(code_digest(tmp_path / f"{number}.py"))
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("name", ["num_steps", "batch_size", "eval_batch_size", "eval_every"])
def test_sizes_of_an_experiment_are_positive(name):
    with pytest.raises(UserError, match=f"{name}=0 is out of range"):
        dataclasses.replace(EXPERIMENT, **{name: 0})


def test_the_test_split_is_read_once_at_the_end(tmp_path, mesh1):
    lines = []

    class Noting(Console):
        def line(self, text):
            lines.append(text)

    train_in(tmp_path / "run", mesh1, console=Noting(is_quiet=True))
    assert not [text for text in lines[:-1] if re.search(r"test_(loss|accuracy)|test  loss", text)]
    assert "test_accuracy=" in lines[-1]


def test_a_notice_stands_on_the_screen_in_the_record_and_in_the_last_line(tmp_path, mesh1, capsys):
    long_line = "word " * 60 + "end"  # wider than any screen: it must be wrapped, not cropped
    data = dataclasses.replace(DATA, notice=f"These are not the data.\n{long_line}")
    experiment = dataclasses.replace(EXPERIMENT, data=data)
    train_in(tmp_path / "run", mesh1, experiment, console=Console())
    output = capsys.readouterr().out
    assert output.count("These are not the data.") == 2
    assert output.count("word") == 60
    assert "end" in output
    assert output.splitlines()[-1].endswith("NOTE: These are not the data.")
    assert "These are not" in json.loads((tmp_path / "run" / "run.json").read_text())["notice"]
