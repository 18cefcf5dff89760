"""Kills, stops and interrupts processes of runs of several processes, and says what became of them.

    python -m benchmarks.processes [--short]

A run of two processes with two devices each is disturbed at random times, in a random process: by SIGKILL, by
SIGSTOP or by SIGTERM. After each disturbance all processes must have ended in time, with the right status,
and must have named the process that was lost. The same command then resumes the run, which must end with the
parameters of an undisturbed run, bit for bit. Exits with status 1 if anything went wrong.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from dl.training.processes import LOST

STALL_SECONDS = 20
RUN = ["-m", "experiments.mnist_mlp", "--dataset", "digits", "--num-epochs", "120", "--save-every", "0.5"]
LIMITS = {signal.SIGKILL: 30.0, signal.SIGSTOP: 3.0 * STALL_SECONDS, signal.SIGTERM: 10.0}  # seconds
STATUSES = {signal.SIGKILL: LOST, signal.SIGSTOP: LOST, signal.SIGTERM: 128 + signal.SIGTERM}


def start(
    folder: Path, run: Sequence[str] = RUN, num_processes: int = 2, num_devices: int = 2
) -> subprocess.Popen[str]:
    """Starts or resumes the run of a folder.

    Args:
      folder: the folder of the run.
      run: the experiment and its options, as arguments of Python.
      num_processes: number of processes.
      num_devices: number of virtual devices of each process.
    """
    launch = ["-m", "launch.local", str(num_processes), "--devices", str(num_devices), "--"]
    options = ["--no-report", "--stall-after", str(STALL_SECONDS), "--workdir", str(folder)]
    words = [sys.executable, *launch, sys.executable, *run, *options]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def send(process: subprocess.Popen[str], how: signal.Signals, number: int) -> bool:
    """Sends a signal to a process of a run; returns whether there was one."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    try:
        os.kill(int(children.read_text(encoding="utf-8").split()[number]), how)
    except (OSError, IndexError):
        return False
    return True


def digest_of(folder: Path) -> str | None:
    """Returns the digest of the final parameters; `None` if the run has not ended."""
    path = folder / "result.json"
    return json.loads(path.read_text(encoding="utf-8"))["params_digest"] if path.exists() else None


def disturb(folder: Path, how: signal.Signals, draw: random.Random) -> str | None:
    """Runs until a disturbance; returns what went wrong, empty if nothing, `None` if the run ended before."""
    process = start(folder)
    log = folder / "metrics.jsonl"
    size = log.stat().st_size if log.exists() else 0
    while process.poll() is None and (not log.exists() or log.stat().st_size <= size):
        time.sleep(0.02)
    time.sleep(draw.uniform(0.0, 2.0))
    number = draw.randrange(2)
    if not send(process, how, number):
        process.communicate()
        return None
    began = time.monotonic()
    output, _ = process.communicate(timeout=600)
    seconds = time.monotonic() - began
    if process.returncode == 0 and digest_of(folder):
        return None
    what = f"{how.name} to process {number}"
    if process.returncode != STATUSES[how]:
        return f"{what}: status {process.returncode} in place of {STATUSES[how]}: {output[-600:]}"
    if seconds > LIMITS[how]:
        return f"{what}: all ended after {seconds:.1f} s, over {LIMITS[how]:g} s"
    if how != signal.SIGTERM and f"process {number} (" not in output.rpartition("error: ")[2]:
        return f"{what}: it was not named: {output[-600:]}"
    return ""


def main(is_short: bool) -> int:
    """Runs the campaign and prints its table in Markdown; returns the exit status."""
    draw = random.Random(0)
    counts = {signal.SIGKILL: 60, signal.SIGSTOP: 20, signal.SIGTERM: 20}
    if is_short:
        counts = dict.fromkeys(counts, 1)
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="dl-processes-") as name:
        start(Path(name) / "undisturbed").communicate()
        expected = digest_of(Path(name) / "undisturbed")
        assert expected is not None, "the undisturbed run failed"
        print("| signal | disturbances | runs | failures | time |\n|---|---:|---:|---:|---:|", flush=True)
        for how, count in counts.items():
            began, done, runs, before = time.monotonic(), 0, 0, len(failures)
            while done < count:
                folder = Path(name) / f"{how.name}-{runs}"
                runs += 1
                for _ in range(5):
                    found = disturb(folder, how, draw) if done < count else None
                    if found is None:
                        break
                    done += 1
                    failures += [found] * bool(found)
                while digest_of(folder) is None:
                    process = start(folder)
                    output, _ = process.communicate()
                    if process.returncode:
                        failures.append(f"{how.name}: the run did not resume: {output[-600:]}")
                        break
                if digest_of(folder) not in (None, expected):
                    failures.append(f"{how.name}: run {runs} ended with other parameters")
            seconds = time.monotonic() - began
            print(
                f"| {how.name} | {done} | {runs} | {len(failures) - before} | {seconds:.0f} s |", flush=True
            )
    print("\n".join(["", *failures]))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main("--short" in sys.argv[1:]))
