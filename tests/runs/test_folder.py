"""The folder of a run: who may have it, what tells it from others, and the command that goes on with it."""

import dataclasses
import enum
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import pytest

from dl import optimizers, task
from dl.errors import UserError
from dl.runs.command_line import this_command
from dl.runs.folder import RunFolder
from dl.runs.log import read_metrics
from dl.runs.provenance import code_digest, legacy_code_digest
from dl.system.json_files import read_json, write_json
from dl.training.restore import restore_variables
from dl.training.signals import Stopped
from tests.helpers import EXPERIMENT, MODEL, SignallingConsole, run_in, step_of, train_in, without_timing

FACTS = {"dataset": {}, "notice": None}


@pytest.mark.parametrize("given", [[], ["--workdir", "a b/run"], ["--workdir=a b/run"]])
def test_the_command_that_goes_on_has_the_folder_once(monkeypatch, given):
    monkeypatch.setattr(sys, "argv", ["x.py", *given, "--name", "a b/run", "--num-epochs=3"])
    run = run_in(Path("a b/run"), name="experiments.x")
    # A value of another option stays, also one that is spelled as the folder is.
    words = "--name 'a b/run' --num-epochs=3 --workdir 'a b/run'"
    assert run.resume_command == f"python -m experiments.x {words}"
    assert this_command("dl", run.folder) == f"python -m dl {words}"
    assert this_command("/a/x.py", run.folder, []) == "python /a/x.py --workdir 'a b/run'"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_runs_begun_in_one_second_get_folders_of_their_own(here, mesh1, monkeypatch):
    monkeypatch.setattr("dl.runs.run.time.strftime", lambda form: "20300101-000000")
    runs = [run_in(None, {"seed": seed}, "experiments.x") for seed in range(3)]
    for run in runs:
        run.check(FACTS)
        run.open(FACTS, mesh1)
    assert len({run.folder for run in runs}) == 3
    for run in runs:
        run.close()
    assert len(list((here / "runs").iterdir())) == 3  # also when the clock comes to the same second again
    assert run_in(None, name="experiments.x").folder not in {run.folder for run in runs}


def test_a_folder_that_was_reserved_and_not_used_is_gone(here):
    run = run_in(None, name="experiments.x")
    assert run.folder.is_dir()
    run.close()
    assert not list((here / "runs").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [
        [".lock"],
        [".run.json.123"],
        [".run.json.0123456789abcdef.tmp"],
        [".DS_Store", ".nfs000000000000000100000001", "._x"],
    ],
)
def test_hidden_files_and_what_a_killed_start_left_never_block_a_folder(tmp_path, mesh1, names):
    for name in names:
        (tmp_path / name).write_text("{")
    train_in(tmp_path, mesh1)
    hidden = {path.name for path in tmp_path.iterdir() if path.name.startswith(".")}
    assert hidden == {name for name in names if not name.startswith((".lock", ".run.json"))}


def test_a_folder_is_locked_against_threads_and_free_again_afterwards(tmp_path, mesh1):
    run, refused = run_in(tmp_path / "run"), []
    run.open(FACTS, mesh1)

    def open_too():
        with pytest.raises(UserError, match="in use") as caught:
            run_in(tmp_path / "run").open(FACTS, mesh1)
        refused.append(caught.value)

    thread = threading.Thread(target=open_too)
    thread.start()
    thread.join()
    assert len(refused) == 1
    run.close()
    assert not (tmp_path / "run" / ".lock").exists()
    other = run_in(tmp_path / "run")
    other.open(FACTS, mesh1)
    other.close()


def test_what_another_process_has_begun_or_finished_meanwhile_is_seen(tmp_path, mesh1):
    late = run_in(tmp_path / "run", {"num_steps": 13})
    late.check(FACTS)
    run = run_in(tmp_path / "run")
    run.open(FACTS, mesh1)
    run.close()
    with pytest.raises(UserError, match="num_steps: 12 there, 13 here"):
        late.open(FACTS, mesh1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a[1]", "50% of é", "back\\slash", "x" * 200, "gs:/b", "a*?"])
def test_any_path_will_do(tmp_path, mesh1, name):
    folder = tmp_path / name / "run"
    with pytest.raises(Stopped):
        train_in(folder, mesh1, console=SignallingConsole(5))
    train_in(folder, mesh1)
    assert [
        line["step"] for line in read_metrics(folder / "metrics.jsonl") if line["kind"] == "train"
    ] == list(range(1, 13))
    restore_variables(EXPERIMENT, run_in(folder), mesh1)


class Shade(enum.Enum):
    DARK = "d"


def test_options_of_every_type_equal_themselves_at_a_resume(tmp_path, mesh1):
    def options():
        return {
            "nan": math.nan,
            "inf": -math.inf,
            "pair": (math.nan, 1),
            "shade": Shade.DARK,
            "place": Path("a"),
            "fn": lambda: None,
        }

    run_in(tmp_path, options(), "x").open(FACTS, mesh1)
    run_in(tmp_path, options(), "x").check(FACTS)
    assert RunFolder(tmp_path).record["options"]["shade"] == "DARK"
    with pytest.raises(UserError, match="nan: NaN there, 1.0 here"):
        run_in(tmp_path, {**options(), "nan": 1.0}, "x").check(FACTS)


def test_the_digest_of_code_is_the_same_under_every_version_of_python(tmp_path):
    path = tmp_path / "e.py"
    path.write_text(CODE, encoding="utf-8")
    # As all of Python 3.11, 3.12 and 3.13 give it.
    assert code_digest(path) == EXPECTED_DIGEST
    path.write_text(path.read_text(encoding="utf-8").replace(" of", " out of"), encoding="utf-8")
    assert code_digest(path) != EXPECTED_DIGEST


CODE = """# é
def f(o, w=(1,), *, k=None):
    'Doc.'
    return f"{o['a']!r:>{w}} of" f'{len(o)} {{}}'
"""
EXPECTED_DIGEST = "4d92ec32260998220ccefe40ad814cb83845cc58cdeda020b929c92a2c7cc9a1"


@pytest.mark.slow
def test_a_run_of_an_older_version_goes_on(tmp_path, mesh1, monkeypatch):
    """It has neither an identity nor digests, and its code is digested in another way."""
    code = tmp_path / "e.py"
    code.write_text("def f():\n    return 1\n")
    old, folder = legacy_code_digest(code), tmp_path / "run"

    def code_is(digest, legacy=""):
        monkeypatch.setattr("dl.runs.definition.code_of", lambda fn: digest)
        monkeypatch.setattr("dl.runs.definition.legacy_code_of", lambda fn: legacy)

    code_is(old)
    with pytest.raises(Stopped):
        train_in(folder, mesh1, console=SignallingConsole(5))
    record = {
        name: value
        for name, value in json.loads((folder / "run.json").read_text()).items()
        if name not in ("id", "sha256", "numerics", "settings", "traced")
    }
    (folder / "run.json").write_text(json.dumps(record))
    extra = folder / "checkpoints" / str(step_of(folder)) / "extra" / "metadata"
    held = json.loads(extra.read_text())
    progress = {k: v for k, v in held["progress"].items() if k not in ("log_digest", "log_start")}
    extra.write_text(json.dumps({"progress": progress, "digests": held["digests"]}))
    code_is(code_digest(code))
    with pytest.raises(UserError, match="code: "):
        train_in(folder, mesh1)
    code_is(code_digest(code), old)
    result = train_in(folder, mesh1, console=SignallingConsole(-1))
    assert result["steps"] == 12
    (folder / "result.json").write_text(
        json.dumps({k: v for k, v in result.items() if k not in ("digests", "run_id", "sha256")})
    )
    again = train_in(folder, mesh1)
    assert again["params_digest"] == result["params_digest"]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, mesh1):
    folder = tmp_path_factory.mktemp("run") / "run"
    with pytest.raises(Stopped):
        train_in(folder, mesh1, console=SignallingConsole(5))
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory, mesh1):
    folder = tmp_path_factory.mktemp("run") / "run"
    return folder, train_in(folder, mesh1)


@pytest.fixture
def copy(stopped, tmp_path):
    return Path(shutil.copytree(stopped, tmp_path / "copy"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_steps": 13}, "num_steps: 12 there, 13 here"),
        ({"batch_size": 17}, "batch_size: 16 there, 17 here"),
        ({"seed": 1}, "seed: 0 there, 1 here"),
        ({"tx": optimizers.adam(optimizers.linear(2e-2, 12))}, "the training step computes something else"),
        ({"tx": optimizers.sgd(1e-2)}, "computes something else"),
        (
            {"task": task.classification(MODEL, input_name="features", label_smoothing=0.1)},
            "computes something else",
        ),
        ({"augment": lambda key, example: example | {"features": example["features"] + 1.5}}, "computes"),
        (
            {"preprocess": lambda batch: batch | {"features": batch["features"] * 2.0}},
            "the evaluation computes",
        ),
    ],
)
@pytest.mark.parametrize("when", ["stopped", "finished"])
def test_another_experiment_under_the_same_name_and_options_is_refused(request, mesh1, when, change, said):
    folder = request.getfixturevalue(when)
    folder = folder[0] if when == "finished" else folder
    with pytest.raises(UserError, match=said) as caught:
        train_in(folder, mesh1, dataclasses.replace(EXPERIMENT, **change))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_same_experiment_made_again_is_the_same_on_any_devices(finished, mesh8):
    model = dataclasses.replace(MODEL)
    again = dataclasses.replace(
        EXPERIMENT,
        task=task.classification(model, input_name="features"),
        tx=optimizers.adam(optimizers.linear(1e-2, 12)),
    )
    assert train_in(finished[0], mesh8, again) == finished[1]


def test_other_settings_of_random_numbers_are_refused(stopped, mesh1):
    before = jax.config.jax_threefry_partitionable
    jax.config.update("jax_threefry_partitionable", not before)
    try:
        with pytest.raises(UserError, match="jax_threefry_partitionable: true there, false here"):
            train_in(stopped, mesh1)
    finally:
        jax.config.update("jax_threefry_partitionable", before)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["copy", "link"])
def test_the_checkpoints_of_another_run_are_refused(stopped, tmp_path, mesh1, how):
    folder = tmp_path / "other"
    with pytest.raises(Stopped):
        train_in(folder, mesh1, console=SignallingConsole(2))
    shutil.rmtree(folder / "checkpoints")
    if how == "copy":
        shutil.copytree(stopped / "checkpoints", folder / "checkpoints")
    else:
        (folder / "checkpoints").symlink_to(stopped / "checkpoints")
    with pytest.raises(UserError, match=r"checkpoints/\d+ belongs to another run"):
        train_in(folder, mesh1)


def test_a_run_that_was_moved_goes_on(copy, finished, mesh1):
    result = train_in(Path(copy.rename(copy.with_name("moved"))), mesh1)
    assert result["params_digest"] == finished[1]["params_digest"]


def test_the_result_of_another_run_is_refused(copy, finished, mesh1):
    shutil.copy(finished[0] / "result.json", copy)
    with pytest.raises(UserError, match=r"result.json belongs to another run"):
        train_in(copy, mesh1)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["removed", "cut", "flipped", "zeros", "emptied"])
def test_metrics_that_were_damaged_are_said_and_never_padded(copy, finished, mesh1, damage, capsys):
    path, step = copy / "metrics.jsonl", step_of(copy)
    content = path.read_bytes()
    if damage == "removed":
        path.unlink()
    else:
        flipped = content[:50] + bytes([content[50] ^ 1]) + content[51:]
        damaged = {"cut": content[:-20], "flipped": flipped, "zeros": b"\0" * len(content), "emptied": b""}
        path.write_bytes(damaged[damage])
    lines = []

    class Listening(SignallingConsole):
        def line(self, text):
            lines.append(text)

    result = train_in(copy, mesh1, console=Listening(-1))
    assert result["params_digest"] == finished[1]["params_digest"]
    assert [text for text in lines if "metrics.jsonl" in text and f"continue from step {step}" in text]
    kept = read_metrics(path)
    assert min(line["step"] for line in kept) >= step  # an evaluation may still be due
    assert result["metrics_from_step"] == step
    if damage != "removed":
        assert (copy / "damaged-metrics-1.jsonl").read_bytes() == damaged[damage]


def test_metrics_written_after_the_last_checkpoint_are_cut_off(copy, finished, mesh1):
    with (copy / "metrics.jsonl").open("ab") as file:
        file.write(b'{"kind": "tr\0\0')
    train_in(copy, mesh1)
    assert without_timing(copy) == without_timing(finished[0])


@pytest.mark.parametrize("name", ["metrics.jsonl", "predictions.npz", "result.json", "run.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_every_file_of_a_finished_run_is_checked_when_it_is_read(finished, tmp_path, name, damage):
    folder = Path(shutil.copytree(finished[0], tmp_path / "copy"))
    path = folder / name
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[:-9])
    else:
        place = content.index(b"12") if name.endswith("json") else len(content) // 2
        content[place] ^= 1
        path.write_bytes(content)
    run = run_in(folder)
    if name in ("result.json", "run.json") and damage == "remove":
        assert (run.result if name == "result.json" else run.record) is None
        return
    with pytest.raises(UserError, match=f"{name} is (damaged|missing)") as caught:
        run.verify(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", ["[]", "3", "{", "\0" * 9, "[" * 100_000, '{"a": 1' + "0" * 5000 + "}", ""]
)
def test_json_of_any_other_content_is_one_line(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(UserError, match="run.json is damaged") as caught:
        _ = RunFolder(tmp_path).record
    assert "\n" not in str(caught.value)


def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "run.json")
    with pytest.raises(UserError, match="run.json is not a regular file"):
        _ = RunFolder(tmp_path).record


def test_json_is_written_in_one_move_beside_nothing(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": [1, math.nan]})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path)["a"][0] == 1
    (tmp_path / "victim").write_text("mine")
    (tmp_path / f".a.json.{os.getpid()}").symlink_to(tmp_path / "victim")  # a name that could be guessed
    write_json(path, {"a": 2})
    assert (tmp_path / "victim").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == [f".a.json.{os.getpid()}", "a.json", "victim"]


def test_a_temporary_file_of_a_killed_process_is_removed_and_that_of_a_living_one_is_not(tmp_path):
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom dl.system.files import replace_file\n"
        "def wait(f):\n    print('in', flush=True)\n    time.sleep(60)\nreplace_file(Path('a.json'), wait)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "in\n"
    write_json(tmp_path / "a.json", {})
    assert len(list(tmp_path.iterdir())) == 2
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    write_json(tmp_path / "a.json", {})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_parameters_that_the_result_is_not_of_are_not_taken_for_its_own(finished, tmp_path, mesh1):
    folder = Path(shutil.copytree(finished[0], tmp_path / "copy"))
    result = json.loads((folder / "result.json").read_text())
    write_json(folder / "result.json", {**result, "params_digest": "0" * 64})
    before = sorted(folder.rglob("*"))
    with pytest.raises(UserError, match="not those that the result is of.*no checkpoint is intact"):
        restore_variables(EXPERIMENT, run_in(folder), mesh1)
    assert sorted(folder.rglob("*")) == before


def test_of_many_differences_a_few_are_shown_and_the_others_counted(tmp_path, mesh1):
    run_in(tmp_path / "run", {f"option{k}": k for k in range(30)}).open(FACTS, mesh1)
    other = run_in(tmp_path / "run", {f"option{k}": k + 1 for k in range(30)})
    with pytest.raises(UserError, match="option5: 5 there, 6 here; 24 more differences") as caught:
        other.check(FACTS)
    assert "option6" not in str(caught.value)
