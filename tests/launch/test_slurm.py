"""The batch script of a job: its options, and what it does when its run saves, ends or fails."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = ("python", "-m", "experiments.mnist_cnn", "--workdir", "runs/it's $HOME; *")
SWEEP = ("python", "-m", "dl", "sweep", "mnist_mlp", "seed=0,1", "--workdir", "runs/tune", "--worker")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def script_of(launch, *options, command=COMMAND):
    done = launch("slurm", "mnist", "--time", "1:00:00", *options, "--", *command)
    assert (done.status, done.err.strip()) == (0, "")
    return Path("runs/launch/mnist.sbatch").read_text()


def options_of(script):
    return dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", script, re.MULTILINE))


def test_a_script_is_written_and_submitted(launch, programs):
    assert script_of(launch).startswith("#!/bin/bash\n#SBATCH ")
    assert programs.calls == [["sbatch", "runs/launch/mnist.sbatch"]]


def test_a_job_saves_before_its_limit_is_requeued_and_keeps_its_log(launch, programs):
    options = options_of(script_of(launch, "--save-seconds", "90"))
    assert options["signal"] == "TERM@90"  # to the steps; with B: it would go to the script alone
    assert options["open-mode"] == "append"
    assert "requeue" in options
    assert options["output"] == "runs/launch/%x-%j.log"


def test_jax_gets_one_process_for_each_gpu(launch, programs):
    options = options_of(script_of(launch, "--nodes", "2", "--gpus-per-node", "8", "--cpus-per-task", "4"))
    assert (options["nodes"], options["ntasks-per-node"], options["gpus-per-node"]) == ("2", "8", "8")
    assert options["cpus-per-task"] == "4"
    assert options_of(script_of(launch))["ntasks-per-node"] == "1"
    assert "gpus-per-node" not in options_of(script_of(launch))


def test_names_of_the_cluster_are_options(launch, programs):
    names = ("--partition", "gpu", "--account", "lab-1", "--qos", "high", "--memory", "64G")
    options = options_of(script_of(launch, *names))
    assert [options[name] for name in ("partition", "account", "qos", "mem")] == [
        "gpu",
        "lab-1",
        "high",
        "64G",
    ]


def test_the_workers_of_a_sweep_are_an_array(launch, programs):
    options = options_of(script_of(launch, "--workers", "4", command=SWEEP))
    assert (options["array"], options["output"]) == ("0-3", "runs/launch/%x-%A_%a.log")


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (("--workers", "4", "--", *COMMAND), "add --worker"),
        (("--workers", "4", "--nodes", "2", "--", *SWEEP), "a worker has one node"),
        (("--save-seconds", "3600", "--", *COMMAND), "make it longer"),
        (("--nodes", "0", "--", *COMMAND), "at least 1"),
        (("--nodes", "two", "--", *COMMAND), "whole number"),
    ],
)
def test_what_cannot_work_is_refused(argv, reason, launch, programs):
    done = launch("slurm", "mnist", "--time", "1:00:00", *argv)
    assert (done.status, done.err.count("\n")) == (2, 1)
    assert reason in done.err
    assert not programs.calls


@pytest.mark.parametrize(
    ("time", "seconds"), [("3", 180), ("0:03:00", 180), ("1-00:00:00", 86400), ("1:00:01", 3601)]
)
def test_time_limits_are_read_as_slurm_reads_them(time, seconds, launch, programs):
    for more, status in ((0, 2), (-1, 0)):
        argv = ("mnist", "--time", time, "--save-seconds", str(seconds + more), "--", *COMMAND)
        assert launch("slurm", *argv).status == status


@pytest.mark.parametrize(
    ("status", "restarts", "is_requeued"),
    [
        *((status, 0, False) for status in (0, 1, 2, 74)),
        *((143, restarts, True) for restarts in (0, 10)),
        *((status, 9, True) for status in (75, 137)),
        *((status, 10, False) for status in (75, 137)),
    ],
)
def test_a_run_that_saved_or_lost_a_process_returns_to_the_queue(
    status, restarts, is_requeued, launch, programs
):
    script_of(launch)
    programs.answer("srun", status=status)
    environment = {"PATH": os.environ["PATH"], "SLURM_JOB_ID": "17", "HOME": "/expanded"}
    environment |= {"SLURM_RESTART_COUNT": str(restarts)} if restarts else {}
    done = subprocess.run(
        ["bash", "runs/launch/mnist.sbatch"], env=environment, capture_output=True, check=False
    )
    assert done.returncode == status
    _, ran, *rest = programs.calls
    assert ran[0] == "srun"
    assert tuple(ran[-len(COMMAND) :]) == COMMAND  # bash has expanded nothing
    assert {"--kill-on-bad-exit=0", "--wait=0"} == set(ran[1 : -len(COMMAND)])
    assert rest == ([["scontrol", "requeue", "17"]] if is_requeued else [])


def test_a_worker_that_saved_returns_alone(launch, programs):
    """One job of an array has the number of the array, by which SLURM would requeue all its jobs."""
    script_of(launch, "--workers", "4", command=SWEEP)
    programs.answer("srun", status=143)
    numbers = {"SLURM_JOB_ID": "17", "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "3"}
    environment = {"PATH": os.environ["PATH"], **numbers}
    subprocess.run(["bash", "runs/launch/mnist.sbatch"], env=environment, capture_output=True, check=False)
    assert programs.calls[-1] == ["scontrol", "requeue", "17_3"]


@pytest.mark.parametrize("command", [COMMAND, SWEEP], ids=["experiment", "sweep"])
def test_scripts_are_clean(command, launch, programs):
    script_of(launch, *(("--workers", "4") if command is SWEEP else ()), command=command)
    checker = shutil.which("shellcheck", path=os.defpath)
    if not checker:
        pytest.skip("needs shellcheck")
    done = subprocess.run([checker, "runs/launch/mnist.sbatch"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_campaign_is_skipped_by_name_without_slurm(tmp_path):
    environment = {"PATH": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.slurm"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
    assert "sbatch" in done.stdout
    assert "slurm-wlm and munge" in done.stdout
