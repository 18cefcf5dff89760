"""Runs in a bucket, against a stand-in for Google Cloud Storage on this machine."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import dl
from dl.cli.commands import main
from dl.cli.exit_status import exit_status
from dl.errors import UserError
from dl.runs.digest import tree_digest
from dl.studies.folder import StudyKind, open_study
from dl.system import bucket, bucket_lock
from dl.system.bucket import BucketFolder, complete, url_of
from dl.system.bucket_lock import BucketLock

ROOT = Path(__file__).parent.parent.parent
URL = "gs://stand-in/runs/one"


def command(*words, url=URL):
    return [
        sys.executable,
        "-m",
        "experiments.mnist_mlp",
        "--dataset",
        "digits",
        "--hidden",
        "8",
        "--num-epochs",
        "4",
        "--workdir",
        url,
        *words,
    ]


def start(tmp_path, *words, url=URL, num_processes=1):
    """Starts a run, with a temporary folder of its own, as on another machine."""
    folder = tmp_path / f"machine-{len(list(tmp_path.iterdir()))}"
    folder.mkdir()
    there = {**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    launch = [sys.executable, "-m", "launch.local", str(num_processes), "--"] if num_processes > 1 else []
    return subprocess.Popen(
        [*launch, *command(*words, url=url)],
        cwd=folder,
        env=there,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    try:
        out, err = process.communicate(timeout=200)
    finally:
        process.kill()
    return process.returncode, out, err


def names(url=URL):
    return BucketFolder(url).list()


def result_of(url=URL):
    return json.loads(BucketFolder(url).read("result.json")[0])


@pytest.mark.parametrize(
    ("path", "url"),
    [
        ("gs://b/f", "gs://b/f"),
        (Path("gs://b/f/g"), "gs://b/f/g"),
        ("gs://b/f/", "gs://b/f"),
        ("runs/one", None),
        ("/gs://b/f", None),
        ("./gs:x", None),
    ],
)
def test_a_url_is_recognised_also_where_pathlib_has_shortened_it(path, url):
    assert url_of(path) == url


@pytest.mark.parametrize("path", ["gs://bucket", Path("gs://bucket/"), "gs://", "gs:///"])
def test_a_url_names_a_folder_in_a_bucket(path):
    with pytest.raises(UserError, match="gs://.*FOLDER"):
        url_of(path)


def test_a_checkpoint_without_its_marker_is_not_complete():
    whole = ["checkpoints/2/state/d/x", "checkpoints/2/commit_success.txt", "run.json"]
    broken = ["checkpoints/4/state/d/x", "checkpoints/4/state/commit_success.txt"]
    assert complete(dict.fromkeys(whole + broken, 1)) == whole


def test_a_missing_package_is_one_line_that_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert exit_status(lambda: BucketFolder(URL)) == 2
    assert "pip install -e '.[gcs]'" in capsys.readouterr().err


def test_studies_refuse_a_url(tmp_path):
    kind = StudyKind("sweep", "sweep.json", ())
    with pytest.raises(UserError, match="a sweep needs a folder on a disk"), open_study(kind, Path(URL), "x"):
        pass


@pytest.mark.slow
def test_a_living_holder_keeps_its_lock_and_a_dead_one_loses_it(bucket_server, monkeypatch):
    monkeypatch.setattr(bucket_lock, "EXPIRY", 1.0)
    folder = BucketFolder(URL)
    lock = BucketLock(folder)
    with pytest.raises(UserError, match="in use by process"):
        BucketLock(folder)
    lock._ended.set()  # it renews nothing more, as if its machine were gone
    other = BucketLock(folder)
    lock._ended.clear()
    assert not lock.is_in_place()
    lock.release()
    assert other.is_in_place()
    other.release()
    assert ".lock" not in names()


@pytest.mark.slow
def test_the_lock_of_a_process_that_ended_on_this_machine_is_taken_at_once(bucket_server):
    folder = BucketFolder(URL)
    ended = {**bucket_lock._this_process(), "started": "1", "id": "x", "beat": 0}
    folder.replace(".lock", json.dumps(ended), bucket.NEW)
    since = time.monotonic()
    BucketLock(folder).release()
    assert time.monotonic() - since < 10


@pytest.mark.slow
def test_a_killed_run_resumes_from_an_empty_disk_to_the_same_digest(bucket_server, tmp_path):
    undisturbed = tmp_path / "undisturbed"
    status, _, err = finish(start(tmp_path, url=str(undisturbed)))
    assert status == 0, err
    digest = json.loads((undisturbed / "result.json").read_text())["params_digest"]
    process = start(tmp_path, "--save-every", "0")
    while not any(name.endswith(f"/{bucket.COMMITTED}") and name.count("/") == 2 for name in names()):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert "result.json" not in names()
    status, out, err = finish(start(tmp_path))
    assert status == 0, err
    assert "resuming at step" in out
    assert f"report: {URL}/report.html" in out
    assert {"run.json", "metrics.jsonl", "predictions.npz", "result.json", "report.html"} <= set(names())
    assert ".lock" not in names()
    assert result_of()["params_digest"] == digest
    status, out, err = finish(start(tmp_path))  # on a third machine
    assert (status, "finished before" in out) == (0, True), err
    with pytest.raises(SystemExit, match="^0$"):
        main(["compare", URL, str(undisturbed)])
    assert tree_digest(dl.load_run(URL).params) == digest


@pytest.mark.slow
def test_several_processes_share_a_bucket(bucket_server, tmp_path):
    exact = ("--reduction", "exact")
    undisturbed = tmp_path / "undisturbed"
    status, _, err = finish(start(tmp_path, *exact, url=str(undisturbed), num_processes=2))
    assert status == 0, err
    digest = json.loads((undisturbed / "result.json").read_text())["params_digest"]
    process = start(tmp_path, *exact, "--save-every", "0", num_processes=2)
    while not any(name.endswith(f"/{bucket.COMMITTED}") and name.count("/") == 2 for name in names()):
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert finish(process)[0] == 143
    assert ".lock" not in names()
    status, out, err = finish(start(tmp_path, *exact, num_processes=2))
    assert status == 0, err
    assert "resuming at step" in out
    assert result_of()["params_digest"] == digest
