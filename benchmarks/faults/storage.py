"""Disks and folders that fail under real processes: one line, its own status, the last checkpoint intact."""

import contextlib
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.faults.commands import OPTIONS, end_of, fresh, in_child, stopped_in_the_middle, train

Child = subprocess.Popen[str]


def start(folder: Path, *words: str, before: Callable[[], None] | None = None, code: str = "") -> Child:
    """Starts the experiment as a process of its own, after a line of Python."""
    program = f"{code}\nimport sys, experiments.mnist_mlp as e, dl\ndl.main(e.experiment, sys.argv[1:])"
    argv = [*OPTIONS, "--save-every", "0", "--no-report", *words, "--workdir", str(folder)]
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program, *argv],
        preexec_fn=before,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def ended(child: Child, status: int, says: str) -> str:
    """Waits for a process; returns what is wrong with its end, empty if it said one line with that status."""
    try:
        _, text = child.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        return "it did not end"
    lines = text.splitlines()
    if child.returncode == status and len(lines) == bool(says) and says in text:
        return ""
    return f"status {child.returncode}, {len(lines)} lines: {text[-300:]!r}"


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
        ended(start(folder, before=limited(resource.RLIMIT_FSIZE, 5000)), 74, "File"),
        folder,
    )
    fresh(folder, pristine)
    child = start(folder, before=limited(resource.RLIMIT_NOFILE, 16))
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
                trouble = ended(start(copied), 74, says)
                remount(disk, "rw,size=100m,nr_inodes=10000")
                note(name, trouble, copied)
        except OSError as error:
            rows.append([name, f"not tried ({error})", "-"])
    moved = place / "moved"
    for name in ("folder moved", "folder removed"):
        fresh(moved)
        fresh(folder)
        child = start(folder, "--num-epochs", "100000")
        until(
            lambda: (folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").stat().st_size > 3000
        )
        folder.rename(moved)
        if name == "folder removed":
            shutil.rmtree(moved)
        trouble = ended(child, 74, "was removed or moved")
        note(name, trouble, None)
    fresh(folder)
    first, second = start(folder), start(folder)
    ends = sorted((child.wait(), child.stderr.read()) for child in (first, second) if child.stderr)
    for child in (first, second):
        if child.stderr:
            child.stderr.close()
    is_right = ends[0] == (0, "") and (ends[1][0] == 0 or (ends[1][0] == 2 and "in use" in ends[1][1]))
    note("two processes at once", "" if is_right else str(ends), folder)
    fresh(folder, pristine)
    backwards = "import time\nnow = iter(range(2_000_000_000, 0, -1))\ntime.time = lambda: float(next(now))"
    note("clock going backwards", ended(start(folder, code=backwards), 0, ""), folder)
    return rows, wrong


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
