"""A job on a host outlives its connection, is joined, stopped once, and ends with its own status."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # it starts and waits for processes

WORKER = Path(__file__).parents[2] / "launch" / "worker.py"
# Counts SIGTERMs, and ends with 143 once it has one, as a run does that saves.
JOB = """
import signal, sys, time
got = []
signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
print("started", flush=True)
end = time.monotonic() + 60
while not got and time.monotonic() < end:
    time.sleep(0.02)
time.sleep(0.3)
print("signals", len(got), flush=True)
sys.exit(143)
"""


def worker(folder, *argv, **how):
    return subprocess.run(
        [sys.executable, str(WORKER), *argv], cwd=folder, capture_output=True, text=True, timeout=60, **how
    )


def start(folder, *argv):
    return subprocess.Popen(
        [sys.executable, str(WORKER), *argv],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
        stderr=subprocess.PIPE,
    )


@pytest.fixture
def running(tmp_path):
    """A job that has started, and the connection that shows it."""
    connection = start(tmp_path, "run", "job", "--", sys.executable, "-c", JOB)
    assert connection.stdout.readline() == "started\n"
    yield connection
    worker(tmp_path, "stop", "job")
    connection.communicate(timeout=60)


@pytest.mark.parametrize("status", [0, 2, 143])
def test_a_job_ends_with_its_own_status_and_all_its_output(tmp_path, status):
    program = f"import sys; print('out'); print('err', file=sys.stderr); sys.exit({status})"
    done = worker(tmp_path, "run", "job", "--", sys.executable, "-c", program)
    assert (done.returncode, sorted(done.stdout.split())) == (status, ["err", "out"])
    again = worker(tmp_path, "follow", "job")
    assert (again.returncode, again.stdout) == (status, done.stdout)
    assert worker(tmp_path, "ask", "job").returncode == 3


def test_a_job_goes_on_when_its_connection_is_lost(tmp_path, running):
    running.send_signal(signal.SIGHUP)
    running.wait(timeout=60)
    assert worker(tmp_path, "ask", "job").returncode == 0
    joined = start(tmp_path, "run", "job", "--", sys.executable, "-c", JOB)
    assert joined.stdout.readline() == "started\n"
    worker(tmp_path, "stop", "job")
    assert joined.communicate(timeout=60)[0] == "signals 1\n"
    assert joined.returncode == 143


def test_a_job_that_is_stopped_gets_one_signal_and_time_to_save(tmp_path, running):
    assert worker(tmp_path, "stop", "job").returncode == 0
    assert worker(tmp_path, "ask", "job").returncode == 3
    out, _ = running.communicate(timeout=60)
    assert (out, running.returncode) == ("signals 1\n", 143)


def test_a_second_command_does_not_take_the_place_of_the_first(tmp_path, running):
    done = worker(tmp_path, "run", "job", "--", sys.executable, "-c", "print(2)")
    assert done.returncode == 2
    assert "another command runs here" in done.stderr


def test_a_job_that_was_killed_with_its_supervisor_is_over(tmp_path, running):
    job = int((tmp_path / "jobs/job/pid").read_text())
    supervisor = int(Path(f"/proc/{job}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(supervisor, signal.SIGKILL)
    os.kill(job, signal.SIGKILL)
    running.communicate(timeout=60)
    assert running.returncode == 137
    assert worker(tmp_path, "ask", "job").returncode == 3


def test_a_job_that_has_ended_starts_again_with_a_new_log(tmp_path):
    count = "open('n', 'a').write('x'); print(1)"
    for _ in range(2):
        done = worker(tmp_path, "run", "job", "--", sys.executable, "-c", count)
        assert (done.returncode, done.stdout) == (0, "1\n")
    assert (tmp_path / "n").read_text() == "xx"


def test_two_starts_at_once_are_one_job(tmp_path):
    count = "import os, time; open('n', 'a').write('x'); time.sleep(1); print('done')"
    argv = ("run", "job", "--", sys.executable, "-c", count)
    starts = [start(tmp_path, *argv) for _ in range(4)]
    assert [process.communicate(timeout=60)[0] for process in starts] == ["done\n"] * 4
    assert (tmp_path / "n").read_text() == "x"


def test_what_does_not_exist_is_said(tmp_path):
    assert worker(tmp_path, "ask", "job").returncode == 4
    assert worker(tmp_path, "stop", "job").returncode == 0
    done = worker(tmp_path, "follow", "job")
    assert (done.returncode, "there is no job" in done.stderr) == (2, True)
    missing = worker(tmp_path, "run", "job", "--", "no-such-program")
    assert (missing.returncode, "did not start" in missing.stdout) == (127, True)


def test_the_command_is_kept_as_words(tmp_path):
    words = [sys.executable, "-c", "import sys; print(sys.argv[1:])", "a b", "$(x)", "--"]
    done = worker(tmp_path, "run", "job", "--", *words)
    assert done.stdout == "['a b', '$(x)', '--']\n"
    assert json.loads((tmp_path / "jobs/job/command.json").read_text()) == words
