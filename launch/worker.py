"""A job on one host that outlives the connection that started it: `python3 launch/worker.py VERB NAME`.

    run NAME -- COMMAND   starts the command, or joins it where it runs, and shows its output to the end
    follow NAME           shows the output of the job so far, and goes on to its end
    stop NAME             sends SIGTERM to the job and waits until it has saved and ended
    ask NAME              exits with 0 while the job runs, with 3 if it has ended, with 4 if there is none

A job keeps its files in the folder jobs/NAME: `log`, `command.json`, `pid`, and `status` once it has ended.
Its supervisor holds a lock on the file `lock` as long as the job runs. The system releases the lock however
the supervisor ends. The file runs alone, and also with an older Python than the project's.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

JOBS = Path("jobs")
PAUSE = 0.2  # seconds between two looks at a log
RUNNING, ENDED, NONE = 0, 3, 4  # exit statuses of `ask`; ssh and gcloud use 1 and 255
KILLED = 137  # the exit status of a job whose supervisor was killed


def is_running(folder: Path) -> bool:
    """Returns whether the supervisor of a job is alive."""
    if not folder.is_dir():
        return False
    with open(folder / "lock", "a", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def run(folder: Path, command: list[str]) -> int:
    """Starts a job, or joins the one that runs, and shows its output to the end. Returns its exit status."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "start", "a", encoding="utf-8") as start:
        fcntl.flock(start, fcntl.LOCK_EX)  # two that start at once: the second joins
        if is_running(folder):
            known = json.loads((folder / "command.json").read_text())
            if known != command:
                print(f"error: another command runs here: {known}; stop it first", file=sys.stderr)
                return 2
        else:
            _start(folder, command)
    return follow(folder)


def _start(folder: Path, command: list[str]) -> None:
    for name in ("status", "pid"):
        (folder / name).unlink(missing_ok=True)
    (folder / "command.json").write_text(json.dumps(command))
    with open(folder / "log", "w", encoding="utf-8") as log:
        subprocess.Popen(
            [sys.executable, os.path.abspath(__file__), "supervise", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    while not is_running(folder) and not (folder / "status").exists():
        time.sleep(PAUSE / 10)


def supervise(folder: Path) -> int:
    """Runs the command of a job and keeps its exit status. Signals are for the command alone."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # unlike SIG_IGN, a handler is not inherited by the command
    with open(folder / "lock", "a", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            job = subprocess.Popen(json.loads((folder / "command.json").read_text()))
        except OSError as error:
            print(f"error: the command did not start: {error}", flush=True)
            status = 127
        else:
            (folder / "pid").write_text(str(job.pid))
            status = job.wait()
        (folder / "status").write_text(str(status if status >= 0 else 128 - status))
    return 0


def follow(folder: Path) -> int:
    """Shows the output of a job to its end. Returns its exit status."""
    if not (folder / "log").exists():
        print(f"error: there is no job in {folder}", file=sys.stderr)
        return 2
    with open(folder / "log", "rb") as log:
        while True:
            alive = is_running(folder)
            for block in iter(lambda: log.read(1 << 16), b""):
                sys.stdout.buffer.write(block)
            sys.stdout.flush()
            if not alive:
                break
            time.sleep(PAUSE)
    status = folder / "status"
    return int(status.read_text()) if status.exists() else KILLED


def stop(folder: Path) -> int:
    """Sends SIGTERM to a job once, and waits for its end: a second signal would end it unsaved."""
    if is_running(folder):
        while is_running(folder) and not (folder / "pid").exists():
            time.sleep(PAUSE)
        if is_running(folder):
            os.kill(int((folder / "pid").read_text()), signal.SIGTERM)
    while is_running(folder):
        time.sleep(PAUSE)
    return 0


def ask(folder: Path) -> int:
    """Returns whether a job runs, has ended or was never started."""
    if is_running(folder):
        return RUNNING
    return ENDED if (folder / "command.json").exists() else NONE


def main(argv: list[str]) -> int:
    """Returns the exit status of one command of this file."""
    verb, name, *rest = argv
    if verb == "supervise":
        return supervise(Path(name))
    folder = JOBS / name
    if verb == "run":
        return run(folder, rest[1:])
    return {"follow": follow, "stop": stop, "ask": ask}[verb](folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
