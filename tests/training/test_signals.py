"""Stopping on request: which signals are saved, which are left alone, and what happens to the output."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from dl.runs.console import Console
from dl.training.signals import Stopped, StopSignals
from tests.helpers import SignallingConsole, train_in

REQUESTS = ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1", "SIGXCPU"])
def test_a_hang_up_and_the_warnings_of_batch_systems_are_saved(tmp_path, mesh1, name):
    before = signal.getsignal(name_of := getattr(signal, name))
    with pytest.raises(Stopped, match=f"stopped by {name}, saved at step") as caught:
        train_in(tmp_path / "run", mesh1, console=SignallingConsole(3, name_of))
    assert caught.value.number == name_of
    assert signal.getsignal(name_of) == before
    assert train_in(tmp_path / "run", mesh1)["steps"] == 12


def test_a_signal_that_the_process_ignores_is_left_alone(tmp_path, mesh1):
    """As `nohup` does with the hang-up."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        console = SignallingConsole(3, signal.SIGHUP)
        assert train_in(tmp_path / "run", mesh1, console=console)["steps"] == 12
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_handler_of_its_own_for_a_users_signal_stays():
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    try:
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGUSR1)
        assert seen
        assert stop.received is None
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("name", [name for name in REQUESTS if name != "SIGTERM"])
def test_the_second_signal_acts_at_once(name):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with StopSignals() as stop:
        os.kill(os.getpid(), number)
        assert stop.received == number
        assert signal.getsignal(number) == before


def test_the_second_sigterm_acts_at_once_unless_it_follows_directly():
    """SLURM sends two of them when it preempts a job."""
    seen = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            assert (stop.received, seen) == (signal.SIGTERM, [])
            time.sleep(1.1)
            os.kill(os.getpid(), signal.SIGTERM)
            assert seen == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_training_in_a_thread_leaves_the_signals_to_the_main_thread(tmp_path, mesh1):
    handlers = [signal.getsignal(getattr(signal, name)) for name in REQUESTS]
    results = []
    thread = threading.Thread(target=lambda: results.append(train_in(tmp_path / "run", mesh1)))
    thread.start()
    thread.join()
    assert results[0]["steps"] == 12
    assert handlers == [signal.getsignal(getattr(signal, name)) for name in REQUESTS]


@pytest.mark.slow
@pytest.mark.parametrize("when", ["compile", "_evaluate_all", "keep_predictions"])
def test_a_signal_at_any_time_changes_nothing_of_the_end(tmp_path, mesh1, monkeypatch, when):
    from dl.training import session
    from dl.training.program import Program

    owners = {"compile": Program, "_evaluate_all": session.Session, "keep_predictions": session}
    owner = owners[when]
    original = getattr(owner, when)

    def signalling(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(owner, when, signalling)
        with pytest.raises(Stopped):
            train_in(tmp_path / "run", mesh1)
    assert not (tmp_path / "run" / "result.json").exists()
    result = train_in(tmp_path / "run", mesh1)
    assert result["params_digest"] == train_in(tmp_path / "other", mesh1)["params_digest"]
    assert (tmp_path / "run" / "predictions.npz").exists()


@pytest.mark.slow
@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), OSError(5, "Input/output error")])
def test_a_run_goes_on_when_nobody_reads_its_output(tmp_path, mesh1, monkeypatch, error):
    class Gone:
        encoding = "utf-8"

        def write(self, text):
            raise error

        def flush(self):
            raise error

        def isatty(self):
            return False

        def fileno(self):
            raise OSError("there is none")

    monkeypatch.setattr(sys, "stdout", Gone())
    assert train_in(tmp_path / "run", mesh1, console=Console())["steps"] == 12


def test_a_command_whose_reader_goes_away_ends_as_it_would_have(tmp_path):
    program = """
import sys
from dl.cli.exit_status import run_as_command
def run():
    print(chr(233), "first", flush=True)
    sys.stdin.readline()
    for _ in range(2000):
        print("more and more")
    print("on standard error too", file=sys.stderr)
    open("done", "w").close()
run_as_command(run)
"""
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    child = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        text=True,
        **dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE),
    )
    assert child.stdout.readline() == "\\xe9 first\n"
    child.stdout.close()
    child.stdin.write("\n")
    child.stdin.close()
    assert child.stderr.read() == "on standard error too\n"
    child.stderr.close()
    assert child.wait() == 0
    assert (tmp_path / "done").exists()
