"""Disks that take no more, folders that go away, and values that are not worth keeping."""

import dataclasses
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from dl import optimizers
from dl.cli.exit_status import exit_status
from dl.errors import Diverged, StorageError, UserError
from dl.training.checkpoint import Checkpoints
from dl.training.population import Population
from dl.training.restore import restore_variables
from dl.training.signals import Stopped
from tests.helpers import EXPERIMENT, SignallingConsole, run_in, step_of, train_in

ROOT = Path(__file__).parents[2]
PROGRAM = """
import resource, signal, sys, warnings
from tests.helpers import EXPERIMENT, run_in
from dl.cli.exit_status import run_as_command
from dl.runs.console import Console
from dl.training.loop import train_run
from dl.sharding import make_mesh
import dataclasses, pathlib
from dl.models.mlp import MLP
from dl import task
model = MLP(hidden=(2000,), num_classes=2)
experiment = dataclasses.replace(EXPERIMENT, task=task.classification(model, input_name="features"))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
run_as_command(lambda: train_run(run_in(pathlib.Path("run"), experiment=experiment), make_mesh({"data": 1}),
               save_every=%s, console=Console(is_quiet=True)) and None)
"""


@pytest.mark.slow
@pytest.mark.parametrize("save_every", [0, 600])
def test_a_full_disk_is_one_line_and_a_exit_status_its_own(tmp_path, save_every):
    started = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    del environment["JAX_COMPILATION_CACHE_DIR"]  # JAX warns where it cannot write there either
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM % save_every],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 74, done.stderr
    (line,) = done.stderr.splitlines()
    assert "a checkpoint in" in line
    assert "cannot be written (File too large); none was saved before" in line
    assert time.monotonic() - started < 60  # nothing waits for what has failed
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("gone", ["removed", "moved", "replaced"])
def test_a_folder_that_goes_away_is_noticed_at_the_next_save(tmp_path, mesh1, gone):
    folder = tmp_path / "run"

    class Taking(SignallingConsole):
        def progress(self, step, description, figures):
            if step == 3:
                folder.rename(tmp_path / "elsewhere")
                if gone != "moved":
                    shutil.rmtree(tmp_path / "elsewhere")
                if gone == "replaced":
                    folder.mkdir()
                    (folder / ".lock").touch()

    with pytest.raises(StorageError, match="was removed or moved") as caught:
        train_in(folder, mesh1, console=Taking(-1))
    assert caught.value.status == 74
    if gone == "removed":
        assert not folder.exists()
    elif gone == "moved":
        train_in(tmp_path / "elsewhere", mesh1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["result.json", "run.json"])
def test_each_file_that_cannot_be_written_is_one_line(tmp_path, mesh1, monkeypatch, name):
    folder = tmp_path / "run"
    real = os.fsync

    def full(descriptor):
        if f".{name}." in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=f"{name} cannot be written .No space left on device") as caught:
        train_in(folder, mesh1)
    assert "\n" not in str(caught.value)
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]
    monkeypatch.undo()
    assert train_in(folder, mesh1)["steps"] == 12


def test_metrics_that_cannot_be_written_are_one_line(tmp_path, mesh1):
    """A file of limited size takes a part of a line, and then no more."""
    folder, before = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(Stopped):
        train_in(folder, mesh1, console=SignallingConsole(3))
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    size = (folder / "metrics.jsonl").stat().st_size + 100
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        with pytest.raises(StorageError, match="cannot be written .File too large"):
            train_in(folder, mesh1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_what_the_system_refuses_anywhere_has_the_same_status(capsys):
    def run():
        raise OSError(errno.ENOSPC, "No space left on device", "cache")

    assert exit_status(run) == 74
    assert capsys.readouterr().err == "error: No space left on device (cache); all that was saved is kept\n"
    with pytest.raises(FileNotFoundError):
        exit_status(lambda: os.stat("/nonexistent/x"))


def test_a_command_whose_checkpoint_has_no_folder_ends_soon(tmp_path):
    """With so few open files the folder cannot be made, and threads of orbax wait for it."""
    code = """if True:
        import resource, dl, experiments.mnist_mlp as example
        resource.setrlimit(resource.RLIMIT_NOFILE, (9, 9))
        argv = "--dataset digits --num-epochs 1 --batch-size 512 --hidden 16 --no-report --workdir".split()
        dl.main(example.experiment, [*argv, "run"])
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TFDS_DATA_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr.count("\n")) == (74, 1)
    assert "cannot be written (Too many open files)" in done.stderr


def test_what_killed_saves_left_is_removed_at_the_next_start(tmp_path, mesh1):
    folder = tmp_path / "run"
    with pytest.raises(Stopped):
        train_in(folder, mesh1, console=SignallingConsole(3))
    left = folder / "checkpoints" / "9.orbax-checkpoint-tmp" / "state.orbax-checkpoint-tmp"
    left.mkdir(parents=True)
    (left / "d").write_text("half")
    train_in(folder, mesh1)
    assert all(path.name.isdecimal() for path in (folder / "checkpoints").iterdir())
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def breaking(step, leaf="Dense_1"):
    """Returns Adam whose update of one leaf is NaN in one step, as of a gradient that is NaN there."""
    adam = optimizers.adam(1e-2)

    def update(gradient, state, params=None, **extra):
        count = state[0]
        updates, inner = adam.update(gradient, state[1], params)
        factor = jnp.where(count + 1 == step, jnp.nan, 1.0)
        updates[leaf]["bias"] = updates[leaf]["bias"] * factor
        return updates, (count + 1, inner)

    return optax.GradientTransformation(lambda params: (jnp.int32(0), adam.init(params)), update)


@pytest.mark.slow
def test_a_state_with_a_nan_is_never_saved_and_the_last_finite_one_stands(tmp_path, mesh1):
    folder = tmp_path / "run"
    experiment = dataclasses.replace(EXPERIMENT, tx=breaking(12))
    with pytest.raises(Stopped):
        train_in(folder, mesh1, experiment, console=SignallingConsole(4))
    step = step_of(folder)
    for _ in range(2):  # every restart begins where all was well
        with pytest.raises(Diverged, match="params/Dense_1/bias is not finite after step 12") as caught:
            train_in(folder, mesh1, experiment)
        assert f"the checkpoint of step {step} is kept" in str(caught.value)
        assert step_of(folder) == step
        assert not (folder / "result.json").exists()


@pytest.mark.slow
def test_a_nan_before_the_first_checkpoint_says_that_nothing_was_saved(tmp_path, mesh1):
    experiment = dataclasses.replace(EXPERIMENT, tx=breaking(2))
    with pytest.raises(Diverged, match="no checkpoint was saved before"):
        train_in(tmp_path / "run", mesh1, experiment)
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


@pytest.mark.slow
def test_the_runs_of_a_population_that_are_well_go_on(tmp_path, mesh1):
    population = Population((0, 1), {"rate": (1e-2, 1e30)}, lambda options: optax.sgd(options["rate"]))
    result = train_in(tmp_path / "run", mesh1, population=population)
    assert result["steps"] == 12
    assert np.isfinite(result["members"][0]["metrics"]["test"]["loss"])
    assert step_of(tmp_path / "run") == 12


@pytest.mark.slow
def test_a_checkpoint_with_a_nan_of_an_older_version_is_passed_over(tmp_path, mesh1, monkeypatch):
    folder = tmp_path / "run"
    experiment = dataclasses.replace(EXPERIMENT, tx=breaking(9))
    with monkeypatch.context() as patch:
        patch.setattr("dl.training.program.Program.trouble_with", lambda self, state: "")
        patch.setattr("dl.training.session.Session._refuse_divergence", lambda self, metrics: None)
        with pytest.raises(Stopped):
            train_in(folder, mesh1, experiment, console=SignallingConsole(4))
        good = step_of(folder)
        assert good < 9
        with pytest.raises(Stopped):
            train_in(folder, mesh1, experiment, console=SignallingConsole(9))
        assert step_of(folder) > good
    with pytest.warns(UserWarning, match="not finite.*trying an older one"), pytest.raises(Diverged):
        train_in(folder, mesh1, experiment)
    assert step_of(folder) == good


def test_the_record_beside_the_arrays_is_inside_the_digest(tmp_path, mesh1):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    state = {"a": jnp.ones(3)}
    for step in (1, 2):
        checkpoints.save(step, state, {"seen": 0.25})
    checkpoints.close()
    path = tmp_path / "checkpoints" / "2" / "extra" / "metadata"
    path.write_text(path.read_text().replace("0.25", "0.75"))
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    with pytest.warns(UserWarning, match="the record beside the arrays does not match"):
        assert Checkpoints(tmp_path / "checkpoints").restore(abstract)[1] == {"seen": 0.25}


def test_parameters_are_read_from_a_folder_that_cannot_be_written(tmp_path, mesh1, monkeypatch):
    folder = tmp_path / "run"
    result = train_in(folder, mesh1)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    restore_variables(EXPERIMENT, run_in(folder), mesh1)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    monkeypatch.setattr(os, "open", refusing_to_write(os.open))
    assert train_in(folder, mesh1) == result  # "finished before"


def refusing_to_write(real):
    def open_(path, flags, *args, **kwargs):
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, "Read-only file system")
        return real(path, flags, *args, **kwargs)

    return open_


def test_a_record_of_progress_of_another_form_is_one_line(tmp_path, mesh1):
    folder = tmp_path / "run"
    with pytest.raises(Stopped):
        train_in(folder, mesh1, console=SignallingConsole(3))
    path = folder / "checkpoints" / str(step_of(folder)) / "extra" / "metadata"
    held = json.loads(path.read_text())
    del held["sha256"]
    held["progress"]["best"] = 3
    path.write_text(json.dumps(held))
    with pytest.raises(UserError, match="the progress record .* cannot be read"):
        train_in(folder, mesh1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        'RESOURCE_EXHAUSTED: Error writing "a/.zarray" in OCDBT database: Failed to open: "manifest.__lock": '
        "Too many open files [tensorstore_spec='{\\\"create\\\":true}'] [os_error_code='24']",
        'Error writing "a/0.0": Failed to open: "d/9914" [OS error 24: EMFILE Too many open files]',
    ],
)
def test_the_reason_of_a_failed_checkpoint_is_what_the_system_calls_it(tmp_path, mesh1, monkeypatch, text):
    def save(*arguments, **options):
        raise ValueError(text)

    monkeypatch.setattr(ocp.CheckpointManager, "save", save)
    with pytest.raises(StorageError, match=r"cannot be written \(Too many open files\); none was saved"):
        train_in(tmp_path / "run", mesh1)
