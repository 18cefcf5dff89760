"""Disks and folders that fail under real processes: one line, its own status, the last checkpoint intact."""

import contextlib
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import dl.cli.main
import experiments.mnist_mlp
from benchmarks.faults.commands import OPTIONS, end_of, fresh, in_child, stopped_in_the_middle, train

SECONDS = 240  # in which a process must have ended


class Child:
    """The experiment as a process of its own, forked from this one."""

    def __init__(self, folder: Path, *words: str, before: Callable[[], None] = lambda: None):
        """Starts it after a call in it."""
        self._argv = [*OPTIONS, "--save-every", "0", "--no-report", *words, "--workdir", str(folder)]
        self._before = before
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 (end() closes it)
        self._process = multiprocessing.get_context("fork").Process(target=self._work)
        self._process.start()

    def _work(self) -> None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(self._errors.fileno(), 2)
        warnings.simplefilter("ignore")
        self._before()
        sys.argv = ["faults", *self._argv]
        dl.cli.main.main(experiments.mnist_mlp.experiment, self._argv)

    def end(self) -> tuple[int | None, str]:
        """Waits for it; returns its exit status and what it wrote about errors. None: it did not end."""
        self._process.join(SECONDS)
        status = self._process.exitcode
        if status is None:
            self._process.kill()
            self._process.join()
        with self._errors as file:
            file.seek(0)
            return status, file.read()


def ended(child: Child, status: int, says: str) -> str:
    """Waits for a process; returns what is wrong with its end, empty if it said one line with that status."""
    found, text = child.end()
    lines = text.splitlines()
    if found == status and len(lines) == bool(says) and says in text:
        return ""
    return f"status {found}, {len(lines)} lines: {text[-300:]!r}"


def limited(limit: int, value: int) -> Callable[[], None]:
    def before() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(limit, (value, value))

    return before


@contextlib.contextmanager
def small_disk(place: Path, options: str) -> Iterator[Path]:
    """Gives a folder on a file system of its own; needs root.

    Raises:
      OSError: it cannot be mounted.
    """
    place.mkdir(exist_ok=True)
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True
    ).returncode:
        raise OSError("no file system can be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def remount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", place], check=True)


def campaign(place: Path) -> tuple[list[list[str]], list[str]]:
    """Tries each fault on a run that was stopped in the middle, then goes on with it where that can be."""
    pristine, folder = place / "pristine", place / "run"
    in_child(lambda: stopped_in_the_middle(pristine))
    fresh(folder, pristine)
    in_child(lambda: train(folder, "--no-report"))
    expected = end_of(folder)
    rows: list[list[str]] = [["fault", "one line and its status", "the run goes on to the same end"]]
    wrong: list[str] = []

    def note(name: str, trouble: str, folder: Path | None) -> None:
        end = ""
        if folder is not None:
            _, outcome = in_child(lambda: train(folder, "--no-report"))
            if outcome is None or outcome[0] != 0:
                end = f"refused: {outcome}"
            elif end_of(folder) != expected:
                end = "another end"
        rows.append([name, "no" if trouble else "yes", "-" if folder is None else ("no" if end else "yes")])
        wrong.extend(f"{name}: {text}" for text in (trouble, end) if text)

    fresh(folder, pristine)
    note(
        "file size limit",
        ended(Child(folder, before=limited(resource.RLIMIT_FSIZE, 5000)), 74, "File"),
        folder,
    )
    fresh(folder, pristine)
    child = Child(folder, before=limited(resource.RLIMIT_NOFILE, 16))
    note("16 file descriptors", ended(child, 74, "Too many open files"), folder)
    for name, options, says in (
        ("full disk", "size={size}k", "No space left"),
        ("no inodes", "nr_inodes={inodes}", "No space left"),
        ("read-only disk", "size=100m", "Read-only file system"),
    ):
        files = list(pristine.rglob("*"))
        used = sum(-(-path.stat().st_size // 4096) * 4 for path in files)
        try:
            with small_disk(place / "disk", options.format(size=used + 40, inodes=len(files) + 8)) as disk:
                copied = fresh(disk / "run", pristine)
                if name == "read-only disk":
                    remount(disk, "ro")
                trouble = ended(Child(copied), 74, says)
                remount(disk, "rw,size=100m,nr_inodes=10000")
                note(name, trouble, copied)
        except OSError as error:
            rows.append([name, f"not tried ({error})", "-"])
    moved = place / "moved"
    for name in ("folder moved", "folder removed"):
        fresh(moved)
        fresh(folder)
        child = Child(folder, "--num-epochs", "100000")
        until(
            lambda: (folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").stat().st_size > 3000
        )
        folder.rename(moved)
        if name == "folder removed":
            shutil.rmtree(moved)
        trouble = ended(child, 74, "was removed or moved")
        note(name, trouble, None)
    fresh(folder)
    first, second = Child(folder), Child(folder)
    ends = sorted((child.end() for child in (first, second)), key=str)
    is_right = ends[0] == (0, "") and (ends[1][0] == 0 or (ends[1][0] == 2 and "in use" in ends[1][1]))
    note("two processes at once", "" if is_right else str(ends), folder)
    fresh(folder, pristine)
    note("clock going backwards", ended(Child(folder, before=backwards), 0, ""), folder)
    return rows, wrong


def backwards() -> None:
    """Makes the clock of this process go backwards."""
    now = iter(range(2_000_000_000, 0, -1))
    time.time = lambda: float(next(now))


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
