"""What can go wrong around a sweep: its folder, its record, its surroundings, the options of one trial."""

import errno
import fcntl
import json
import os
import shlex
from pathlib import Path

import numpy as np
import pytest

from dl.cli.options import parse
from dl.cli.study_commands import SweepOptions
from dl.runs.find import find_experiment
from dl.training.loop import train_run
from tests.helpers import replace_training

EXPERIMENT = '''
"""A line through points; the options make every kind of mistake."""
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from dl import Experiment, PositiveInt, UserError, optimizers
from dl.data import ArraySource, ArraySplits
from dl.metrics import Mean
from dl.task import Task
from dl.types import Aux

POINTS = np.arange(8, dtype=np.float32)
SOURCE = ArraySource({"image": POINTS, "label": 2 * POINTS})


def loss_fn(params, model_state, batch, key):
    errors_B = (params["slope"] * batch["image"] - batch["label"]) ** 2
    loss = Mean.of(errors_B, batch["mask"])
    gain = Mean.of(100 - errors_B, batch["mask"])
    return loss, Aux(model_state, {"loss": loss, "gain": gain})


def experiment(
    rate: float = 0.001,
    sizes: tuple[int, ...] = (1,),
    notes: Path | None = None,
    text: str = "a b",
    offset: float = -1.0,
    flag: bool = True,
    fault: str = "none",
    num_steps: PositiveInt = 2,
    batch_size: PositiveInt = 8,
) -> Experiment:
    """Trains."""
    if not os.path.exists(os.environ.get("POINTS", "/")):
        raise UserError("the points are not prepared; fetch them")
    if notes is not None:
        notes.read_text()
    if fault == "user":
        raise UserError("fault=user is out of range")
    if fault == "division":
        1 // 0
    if fault == "missing":
        {}[fault]
    return Experiment(
        data=ArraySplits("points", SOURCE, {"validation": SOURCE}),
        task=Task(
            init=lambda key, batch: {"params": {"slope": jnp.zeros(sizes[0] if fault == "shape" else ())}},
            loss=loss_fn,
        ),
        preprocess=None,
        tx=optimizers.sgd(rate),
        num_steps=num_steps,
        batch_size=batch_size,
    )
'''.replace(
    "from dl.metrics import Mean\n",
    "from dl.metrics import Mean\nfrom dl.task import Task\nfrom dl.types import Aux\n",
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    file = tmp_path_factory.mktemp("experiments") / "line.py"
    file.write_text(EXPERIMENT)
    return str(file)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "sweep"


@pytest.fixture
def sweep(dl, path, folder):
    """Runs a grid; returns its status, output, errors and rows."""

    def run(*words, method="grid"):
        options = ["--method", method, "--mesh", "data=1", "--workdir", str(folder)]
        status, out, err = dl("sweep", path, *words, *options)
        record = folder / "sweep.json"
        return status, out, err, json.loads(record.read_text())["trials"] if record.exists() else None

    return run


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["user", "division", "missing"])
def test_an_error_of_one_trials_options_is_its_row(sweep, fault):
    status, out, err, rows = sweep(f"fault=none,{fault}")
    assert (status, err) == (0, "")
    assert rows[0]["value"] is not None
    assert rows[1]["value"] is None
    assert "\n" not in rows[1]["error"]
    assert f"trial 1: fault={fault}: {rows[1]['error']}" in out
    assert sweep(f"fault=none,{fault}")[0] == 0  # and of the next start


def test_a_file_that_an_option_names_is_that_trials_own_fault(sweep, tmp_path):
    (tmp_path / "there").touch()
    status, _, _, rows = sweep(f"notes={tmp_path / 'missing'},{tmp_path / 'there'}")
    assert status == 0
    assert [row["value"] is None for row in rows] == [True, False]
    assert "FileNotFoundError" in rows[0]["error"]


@pytest.mark.slow
def test_a_shape_that_does_not_fit_is_its_row(sweep):
    status, _, _, rows = sweep("sizes=1,3", "fault=none,shape")
    assert status == 0
    assert [row["value"] is None for row in rows] == [False, False, False, True]


def test_a_defect_that_ends_every_trial_keeps_its_traceback(path, folder, dl):
    with pytest.raises(ZeroDivisionError):
        dl("sweep", path, "rate=0.1,0.2", "--fault", "division", "--method", "grid", "--workdir", str(folder))
    assert not folder.exists()


def test_data_that_are_not_there_are_no_result(sweep, folder, monkeypatch, tmp_path):
    monkeypatch.setenv("POINTS", str(tmp_path / "mounted"))
    status, _, err, rows = sweep("rate=0.001,0.002")
    assert (status, err, rows) == (2, "error: the points are not prepared; fetch them\n", None)
    assert not folder.exists()
    (tmp_path / "mounted").mkdir()
    status, _, _, rows = sweep("rate=0.001,0.002")
    assert status == 0
    assert all(row["value"] is not None for row in rows)


@pytest.mark.slow
def test_data_that_vanish_in_the_middle_end_the_sweep(sweep, monkeypatch, tmp_path):
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    monkeypatch.setenv("POINTS", str(mounted))

    def train_and_unmount(experiment, run, mesh, population, console):
        result = train_run(run, mesh, population=population, console=console).record
        mounted.rmdir()
        return result

    replace_training(monkeypatch, train_and_unmount)
    words = ["batch_size=2,4,8"]
    status, _, err, rows = sweep(*words)
    assert status == 2
    assert err.startswith(
        "error: trial 1 cannot run now (the points are not prepared; fetch them); solve this problem"
    )
    assert err.count("\n") == 1
    assert [row["trial"] for row in rows] == [0]
    monkeypatch.undo()
    monkeypatch.setenv("POINTS", str(mounted))
    mounted.mkdir()
    status, out, _, rows = sweep(*words)
    assert status == 0
    assert all(row["value"] is not None for row in rows)
    assert len([line for line in out.splitlines() if line.startswith("trial ")]) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        ConnectionResetError("the other side has gone"),
        MemoryError("too little"),
    ],
)
def test_a_full_disk_a_broken_network_or_too_little_memory_ends_the_sweep(sweep, monkeypatch, error):
    def fail(*args, **how):
        raise error

    replace_training(monkeypatch, fail)
    status, _, err, rows = sweep("rate=0.001,0.002")
    assert (status, rows, err.count("\n")) == (2, [], 1)
    monkeypatch.undo()
    assert sweep("rate=0.001,0.002")[0] == 0


def test_a_failure_that_an_older_version_recorded_is_tried_again(sweep, folder):
    words = ["rate=0.001,0.002"]
    sweep(*words)
    record = json.loads((folder / "sweep.json").read_text())
    del record["sha256"]
    record["trials"][1] = {
        "trial": 1,
        "options": {"rate": 0.002},
        "folder": "trial-001",
        "value": None,
        "error": "data are not mounted",
    }
    (folder / "sweep.json").write_text(json.dumps(record))
    assert all(row["value"] is not None for row in sweep(*words)[3])


@pytest.mark.slow
def test_a_trial_that_diverges_is_not_tried_again(sweep):
    words = ["rate=0.001,1e30", "batch_size=4,8", "--num-steps", "6"]
    status, out, _, rows = sweep(*words)
    assert status == 0
    failed = [row for row in rows if row["value"] is None]
    assert [row["options"]["rate"] for row in failed] == [1e30] * 2
    status, again, _, _ = sweep(*words)
    assert (status, "trial 2:" in out, "trial 2:" in again) == (0, True, False)


def test_two_sweeps_do_not_share_a_folder(sweep, folder):
    folder.mkdir()
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        status, out, err, rows = sweep("rate=0.001,0.002")
    assert (status, rows, "trial" in out) == (2, None, False)
    assert "is in use by another process; wait for it, or choose another folder" in err
    assert sweep("rate=0.001,0.002")[0] == 0  # the file itself blocks nobody


def test_leftovers_and_hidden_files_do_not_block_a_folder(sweep, folder):
    (folder / "trial-000").mkdir(parents=True)
    for name in (".DS_Store", ".nfs0001", ".sweep.json.77"):
        (folder / name).touch()
    assert sweep("rate=0.001,0.002")[0] == 0


def test_another_run_in_the_folder_of_a_trial_is_no_result(sweep, folder):
    (folder / "trial-000").mkdir(parents=True)
    record = {"experiment": "other", "code": "", "options": {}, "starts": []}
    (folder / "trial-000" / "run.json").write_text(json.dumps(record))
    status, _, err, rows = sweep("rate=0.001,0.002", "--together", "1")
    assert (status, rows, err.count("\n")) == (2, [], 1)
    assert "holds another run (" in err


@pytest.mark.slow
def test_without_its_record_a_sweep_finds_its_runs(sweep, folder):
    words = ["rate=0.001,0.002", "batch_size=8,4", "--together", "1"]
    before = sweep(*words)[3]
    (folder / "sweep.json").unlink()
    assert sweep(*words)[3] == before
    starts = [len(json.loads((folder / f"trial-00{k}/run.json").read_text())["starts"]) for k in range(4)]
    assert starts == [1] * 4


def test_two_folders_begun_in_one_second_differ(dl, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dl.studies.folder.time.strftime", lambda *_: "20260101-000000")
    for _ in range(2):
        assert dl("sweep", path, "rate=0.001", "--method", "grid", "--mesh", "data=1")[0] == 0
    assert sorted(os.listdir("runs")) == [f"line-sweep-20260101-000000{end}" for end in ("", "-2")]


DAMAGES = {
    "cut": lambda text: text[: len(text) // 2],
    "empty": lambda text: b"",
    "NUL": lambda text: b"\0" * len(text),
    "a list": lambda text: b"[]",
    "no UTF-8": lambda text: text.replace(b"rate", b"r\xff\xffe", 1),
    "deep": lambda text: b"[" * 100_000,
    "another value": lambda text: text.replace(b'"value": ', b'"value": 1', 1),
    "another trial": lambda text: text.replace(b'"trial": 1', b'"trial": 7', 1),
    "no digest, no trials": lambda text: b"{}",
    "no digest, wrong types": lambda text: b'{"trials": [{"trial": "0", "options": {}, "folder": "x"}]}',
    "no digest, no value": lambda text: b'{"trials": [{"trial": 0, "options": {}, "folder": "trial-000"}]}',
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))
def test_a_damaged_record_is_one_line(sweep, dl, path, folder, monkeypatch, damage):
    replace_training(monkeypatch, stub)
    words = ["rate=0.001,0.002", "--together", "1"]
    assert sweep(*words)[0] == 0
    record = folder / "sweep.json"
    record.write_bytes(damage(record.read_bytes()))
    before = record.read_bytes()
    status, _, err = dl("sweep", path, *words, "--method", "grid", "--workdir", str(folder))
    assert (status, err.count("\n")) == (2, 1)
    assert "sweep.json is damaged (" in err
    assert record.read_bytes() == before


@pytest.mark.slow
def test_every_flipped_bit_is_seen_or_changes_nothing(sweep, dl, path, folder, monkeypatch):
    replace_training(monkeypatch, stub)
    words = ["rate=0.001,0.002", "--together", "1"]
    rows = sweep(*words)[3]
    record = folder / "sweep.json"
    content = record.read_bytes()
    random = np.random.default_rng(0)
    for place in random.choice(len(content), 40, replace=False):
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(random.integers(8))
        record.write_bytes(bytes(flipped))
        status, _, err = dl("sweep", path, *words, "--method", "grid", "--workdir", str(folder))
        assert (status, err.count("\n")) == (2, 1) or (
            status == 0 and json.loads(record.read_text())["trials"] == rows
        )


def stub(experiment, run, mesh, population, console):
    return {"metrics": {"validation": {"loss": 1.5, "gain": 98.5}}}


def test_the_command_that_goes_on_has_the_same_options(sweep, path, dl, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-my notes").touch()
    words = [
        "rate=0.001,0.002",
        "--sizes",
        "4",
        "8",
        "--notes=-my notes",
        "--text=it's $HOME",
        "--offset=-2.5",
    ]
    status, out, _, _ = sweep(*words, "--no-flag")
    assert status == 0
    command = shlex.split(out.splitlines()[-1])
    assert command[:3] == ["python", "-m", "line"]
    values, _ = parse(find_experiment(path), SweepOptions, command[3:], "p")
    assert values == {
        "rate": 0.001,
        "sizes": (4, 8),
        "notes": Path("-my notes"),
        "text": "it's $HOME",
        "offset": -2.5,
        "flag": False,
        "fault": "none",
        "num_steps": 2,
        "batch_size": 8,
    } | {"rate": values["rate"]}


@pytest.mark.slow
@pytest.mark.parametrize("word", ["offset=nan,1", "offset=nan,-1"])
def test_an_option_that_is_nan_is_itself_at_a_resume(sweep, word):
    first = sweep(word, "--together", "1")
    again = sweep(word, "--together", "1")
    assert (first[0], again[0]) == (0, 0)
    assert first[3] == again[3]


def test_a_fixed_option_that_is_nan_is_itself_at_a_resume(sweep, folder):
    words = ["rate=0.001,0.002", "--offset", "nan", "--together", "1"]
    assert sweep(*words)[0] == 0
    (folder / "sweep.json").unlink()
    assert sweep(*words)[0] == 0


def test_a_metric_without_a_direction_asks_for_it(sweep, folder):
    status, _, err, _ = sweep("rate=0.001,0.002", "--metric", "validation.gain")
    assert (status, folder.exists()) == (2, False)
    assert "does not state whether small or large values are good; add --mode min or --mode max" in err


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "best"), [("min", "0.001"), ("max", "0.002")])
def test_the_mode_decides_what_is_best(sweep, mode, best):
    _, out, _, rows = sweep("rate=0.001,0.002", "--metric", "validation.gain", "--mode", mode)
    values = {str(row["options"]["rate"]): row["value"] for row in rows}
    assert values["0.001"] < values["0.002"]
    assert f"best_validation_gain={values[best]:.6g} " in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["num_steps=3", "--method", "halving"], "halving divides num_epochs or num_steps"),
        (["batch_size=8,0"], "--batch-size 0 is out of range"),
        (["batch_size=0:8"], "--batch-size 0 is out of range"),
        (["rate=1:inf"], "'rate=1:inf' is not a finite range"),
        (["rate=nan:1"], "'rate=nan:1' is not a range"),
        (["rate=0.1,0.1"], "'rate=0.1,0.1' gives 0.1 twice"),
        (["rate=0.1:0.2", "--num-trials", "0"], "--num-trials 0 is out of range"),
    ],
)
def test_mistakes_are_judged_before_the_work(dl, path, folder, words, message):
    status, _, err = dl("sweep", path, *words, "--workdir", str(folder))
    assert (status, message in err, folder.exists()) == (2, True, False), err
