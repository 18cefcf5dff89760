"""SIGKILL at every file-system call of a run and at random times, and the same command again."""

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.faults.commands import end_of, fresh, in_child, leftovers, train

_CALLS = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.symlink", "shutil.rmtree")


def watch(folder: Path, kill_at: int | None) -> list[int]:
    """Counts this process's changes of a folder; kills it just before the one of that number.

    Of orbax's own writes, which another language makes, it sees the renames that make them count.
    """
    count = [0]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            _, mode, flags = arguments
            changes = bool(flags & (os.O_WRONLY | os.O_RDWR)) if mode is None else set(mode) & set("wax+")
        else:
            changes = event in _CALLS
        if changes and str(folder) in str(arguments[0]):
            count[0] += 1
            if count[0] == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return count


def run(folder: Path, kill_at: int | None) -> int:
    count = watch(folder, kill_at)
    outcome = train(folder)
    assert outcome.status == 0, outcome.text
    return count[0]


def campaign(place: Path, number: int) -> tuple[list[list[str]], list[str]]:
    """Kills `number` runs at calls spread over all, and half as many at random times; each goes on."""
    folder = place / "killed"
    in_child(lambda: run(fresh(folder), None))  # fills the caches
    started = time.monotonic()
    _, num_calls = in_child(lambda: run(fresh(folder), None))
    seconds, expected, chance = time.monotonic() - started, end_of(folder), random.Random(0)
    calls = sorted({1 + k * (num_calls - 1) // max(number - 1, 1) for k in range(number)})
    plans: list[tuple[str, int | None, float | None]] = [(f"call {k} of {num_calls}", k, None) for k in calls]
    plans += [("a random time", None, chance.uniform(0, seconds)) for _ in range(number // 2)]
    wrong, missed = [], 0
    for what, kill_at, after in plans:
        fresh(folder)
        ended, _ = in_child(lambda k=kill_at: run(folder, k), after)
        missed += ended != signal.SIGKILL
        _, again = in_child(lambda: train(folder))
        if again is None or again[0] != 0:
            wrong.append(f"refused after a kill at {what}: {again}")
        elif end_of(folder) != expected:
            wrong.append(f"another end after a kill at {what}")
        elif not (folder / "report.html").exists():
            wrong.append(f"no report after a kill at {what}")
        elif left := leftovers(folder):
            wrong.append(f"{left} left behind after a kill at {what}")
    table = [
        ["kills", "at calls", "at random times", "came too late", "wrong afterwards"],
        [str(len(plans)), f"{len(calls)} of {num_calls}", str(number // 2), str(missed), str(len(wrong))],
    ]
    return table, wrong
