"""Several processes train one run: what they decide together, and how they end."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from dl.runs.log import read_metrics
from dl.system.cluster import Cluster
from dl.training import processes
from dl.training.processes import LOST, Together

ROOT = Path(__file__).parents[2]
HALFSPACE = '''
"""A small network learns a plane."""
import numpy as np

from dl import Experiment, PositiveInt, Seed, main, optimizers, task
from dl.data import ArraySource, ArraySplits
from dl.models.mlp import MLP


def source(size, seed):
    features = np.random.default_rng(seed).normal(size=(size, 3)).astype(np.float32)
    return ArraySource({"features": features, "label": np.int32(features.sum(1) > 0)})


def experiment(num_steps: PositiveInt = 40, seed: Seed = 0) -> Experiment:
    """Trains."""
    return Experiment(
        data=ArraySplits("plane", train=source(50, 0), evaluations={"test": source(21, 1)}),
        task=task.classification(MLP(hidden=(8,), num_classes=2, dropout=0.2), input_name="features"),
        tx=optimizers.adam(1e-2),
        num_steps=num_steps,
        batch_size=16,
        seed=seed,
    )


if __name__ == "__main__":
    main(experiment)
'''


class Pair:
    """Two ends of the decisions of two processes, without a network between them."""

    class End:
        def __init__(self, number):
            self.number, self.name, self.heard = number, f"process {number}", time.monotonic()
            self.other, self.inbox = None, queue.SimpleQueue()

        def send(self, message):
            self.other.inbox.put(message)

        def listen(self, receive):
            def read():
                while True:
                    message = self.inbox.get()
                    self.heard = time.monotonic()
                    receive(self.number, message)

            threading.Thread(target=read, daemon=True).start()

    def __init__(self, stall_seconds=60.0):
        to_follower, to_leader = self.End(1), self.End(0)
        to_follower.other, to_leader.other = to_leader, to_follower
        self.ends = {0: to_follower, 1: to_leader}
        self.leader = Together(Cluster("localhost", 1, 2, 0), [to_follower], stall_seconds)
        self.follower = Together(Cluster("localhost", 1, 2, 1), [to_leader], stall_seconds)


class Signals:
    received = None


@pytest.fixture
def ended(monkeypatch):
    """Statuses with which processes would end; the thread that ends one does nothing more."""
    statuses = []

    def exit_at_once(status):
        statuses.append(status)
        threading.Event().wait()

    monkeypatch.setattr(processes, "_exit_at_once", exit_at_once)
    monkeypatch.setattr(processes, "_GRACE", 0.1)
    monkeypatch.setattr(processes, "_HEARTBEAT", 0.05)
    monkeypatch.setattr(processes.jax.distributed, "shutdown", lambda: None)
    return statuses


def wait_until(is_so, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_leader_decides_what_depends_on_time(ended):
    pair = Pair()
    assert pair.leader.decide(is_due=True)
    assert pair.follower.decide(is_due=False)
    assert not pair.leader.decide(is_due=False)
    assert not pair.follower.decide(is_due=True)


@pytest.mark.parametrize("receiver", ["leader", "follower"])
def test_a_signal_to_one_process_stops_all_at_the_same_decision(receiver, ended):
    pair = Pair()
    pair.leader.signals, pair.follower.signals = Signals(), Signals()
    getattr(pair, receiver).signals.received = signal.SIGTERM
    at = {"leader": 0, "follower": 0}
    for number in range(1, 4):
        for name in at:
            together = getattr(pair, name)
            if together.is_stopped() and not at[name]:
                at[name] = number
                assert together.received == signal.SIGTERM
        time.sleep(0.05)  # in which a message arrives
    assert 1 <= at["leader"] == at["follower"] <= 2


def test_all_leave_together(ended):
    pair = Pair()
    threads = [threading.Thread(target=end.leave, args=(0,)) for end in (pair.follower, pair.leader)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
        assert not thread.is_alive()
    assert not ended


def test_a_process_that_fails_alone_ends_all_and_is_named(ended, capfd):
    pair = Pair()
    threading.Thread(target=pair.follower.leave, args=(2, "error: its disk is full"), daemon=True).start()
    wait_until(lambda: len(ended) >= 2)
    assert sorted(ended[:2]) == [2, LOST]
    assert "process 1 has failed: its disk is full; the same command resumes" in capfd.readouterr().err


def test_a_process_that_dies_is_named(ended, capfd):
    pair = Pair()
    pair.ends[0].inbox.put(None)
    wait_until(lambda: len(ended) >= 2)
    assert set(ended) == {LOST}
    assert "error: process 1 has ended" in capfd.readouterr().err


def test_a_process_that_does_not_answer_is_named(ended, capfd):
    pair = Pair(stall_seconds=0.3)
    pair.ends[1].send = lambda message: None  # process 1 sends nothing
    wait_until(lambda: LOST in ended)
    assert "process 1 has not answered for 0 s" in capfd.readouterr().err


def test_a_process_without_progress_prints_its_stacks_and_is_named(ended, capfd):
    pair = Pair(stall_seconds=0.5)
    with pair.leader.watched(), pair.follower.watched():
        for _ in range(3):
            pair.leader.decide()
            pair.follower.decide()
        pair.leader.decide()  # process 1 does not come
        wait_until(lambda: LOST in ended)
    said = capfd.readouterr().err
    assert "made no progress for" in said
    assert "test_a_process_without_progress" in said  # in the stacks
    assert "behind: process 1;" in said


def environment(**changes):
    kept = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "PYTHONPATH")}
    return {**kept, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **changes}


@pytest.fixture
def launch(tmp_path):
    """Starts the experiment in processes; returns the process that launches them."""
    (tmp_path / "halfspace.py").write_text(HALFSPACE)
    started = []

    def start(num_processes, *options, folder="run"):
        program = [sys.executable, "halfspace.py", "--workdir", folder, "--no-report", *options]
        if num_processes > 1:
            launcher = [sys.executable, "-m", "launch.local", str(num_processes), "--devices", "2", "--"]
            flags = {}
        else:
            launcher, flags = [], {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
        process = subprocess.Popen(
            [*launcher, *program],
            cwd=tmp_path,
            env=environment(**flags),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()


def finish(process, seconds=240):
    said, _ = process.communicate(timeout=seconds)
    return process.returncode, said


def children(process):
    """Returns the ids of the processes of a run, process 0 first."""
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(word) for word in path.read_text().split()]


def wait_for_steps(process, folder, at_least):
    def has_steps():
        assert process.poll() is None, process.communicate()[0]
        path = folder / "metrics.jsonl"
        return path.exists() and sum(line["kind"] == "train" for line in read_metrics(path)) >= at_least

    wait_until(has_steps, 240)


@pytest.mark.slow
def test_two_processes_train_as_one(launch, tmp_path):
    steps = ["--num-steps", "40", "--log-every", "1"]
    assert finish(launch(1, *steps, folder="one"))[0] == 0
    status, said = finish(launch(2, *steps, folder="two"))
    assert status == 0, said
    assert said.count("test_accuracy=") == 1  # process 0 alone prints

    def losses(folder):
        lines = read_metrics(tmp_path / folder / "metrics.jsonl")
        return [line["loss"] for line in lines if line["kind"] == "train"]

    np.testing.assert_allclose(losses("two"), losses("one"), atol=1e-5)
    starts = json.loads((tmp_path / "two" / "run.json").read_text())["starts"]
    assert [start["processes"] for start in starts] == [2]


@pytest.mark.slow
def test_sigterm_to_a_process_stops_all_saved_and_one_process_ends_the_run_with_the_same_bits(
    launch, tmp_path
):
    steps = ["--num-steps", "2000", "--log-every", "10", "--save-every", "1000", "--reduction", "exact"]
    assert finish(launch(1, *steps, folder="whole"))[0] == 0
    process = launch(2, *steps)
    wait_for_steps(process, tmp_path / "run", 2)
    os.kill(children(process)[1], signal.SIGTERM)
    began = time.monotonic()
    status, said = finish(process)
    assert status == 143, said
    assert time.monotonic() - began < 10
    assert said.count("stopped by SIGTERM, saved at step") == 1
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert f"saved at step {int(saved.name):,} of" in said
    status, said = finish(launch(1, *steps))
    assert status == 0, said
    assert f"resuming at step {int(saved.name):,} of" in said
    digests = [
        json.loads((tmp_path / folder / "result.json").read_text())["params_digest"]
        for folder in ("whole", "run")
    ]
    assert digests[0] == digests[1]


@pytest.mark.slow
@pytest.mark.parametrize(("how", "number"), [(signal.SIGKILL, 0), (signal.SIGSTOP, 1)])
def test_the_loss_of_a_process_ends_all_and_names_it(how, number, launch, tmp_path):
    process = launch(2, "--num-steps", "1000000", "--stall-after", "15")
    wait_for_steps(process, tmp_path / "run", 2)
    victim = children(process)[number]
    os.kill(victim, how)
    began = time.monotonic()
    status, said = finish(process)
    assert status == LOST, said
    assert time.monotonic() - began < (30 if how == signal.SIGKILL else 60)
    assert f"error: process {number} (" in said
    assert f"pid {victim})" in said
    assert "Traceback" not in said.replace("Traceback (most recent call first)", "")
