"""The commands that the faults are injected into, and children that run them.

A child is forked from a process that has imported everything and started nothing: it is a process of its own,
without the seconds of imports.
"""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import dl.cli.commands
import dl.cli.main
import dl.training.loop
import experiments.mnist_mlp

OPTIONS = ["--dataset", "digits", "--num-epochs", "1", "--batch-size", "512", "--hidden", "16"]
_TIMES = ("seconds", "examples_per_second")


class Outcome(NamedTuple):
    """What a command did: its exit status (None: an exception escaped) and what it printed."""

    status: int | None
    text: str


def call(main: Callable[..., None], *words: str) -> Outcome:
    """Runs a `main` in this process as if it were a command."""
    printed, status = io.StringIO(), 0
    sys.argv = ["faults", *words]
    warnings.simplefilter("always")
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            main(list(words))
        except SystemExit as exit_:
            status = int(exit_.code or 0)
        except BaseException:
            traceback.print_exc()
            return Outcome(None, printed.getvalue())
    return Outcome(status, printed.getvalue())


def train(folder: Path, *words: str) -> Outcome:
    """Trains the small experiment in a folder, from where it is to its end."""

    def main(argv: list[str]) -> None:
        dl.cli.main.main(experiments.mnist_mlp.experiment, argv)

    return call(main, *OPTIONS, "--save-every", "0", *words, "--workdir", str(folder))


def command(*words: str) -> Outcome:
    """Runs `python -m dl WORDS`."""
    return call(dl.cli.commands.main, *words)


def in_child(work: Callable[[], Any], kill_after: float | None = None) -> tuple[int, Any]:
    """Runs `work` in a forked child; returns the number of the signal that ended it (0: none) and its value.

    Args:
      work: returns what JSON knows.
      kill_after: seconds until the child is killed; None: it is not.
    """
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "value"
        child = os.fork()
        if not child:
            status = 1
            try:
                os.setpgid(0, 0)
                path.write_text(json.dumps(work()), encoding="utf-8")
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        if kill_after is not None:
            time.sleep(kill_after)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        _, ended = os.waitpid(child, 0)
        value = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        return os.WTERMSIG(ended) if os.WIFSIGNALED(ended) else 0, value


def end_of(folder: Path) -> dict[str, Any]:
    """Returns what a finished run's folder says, without the times that differ between any two runs."""
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    metrics = [{k: v for k, v in json.loads(line).items() if k not in _TIMES} for line in lines]
    return {"params": result["params_digest"], "metrics": result["metrics"], "lines": metrics}


def leftovers(folder: Path) -> list[str]:
    """Returns what does not belong into the folder of a complete run."""
    names = [path.name for path in folder.iterdir() if path.name.startswith(".")]
    steps = folder / "checkpoints"
    return names + [path.name for path in steps.iterdir() if not re.fullmatch(r"\d+", path.name)]


def fresh(folder: Path, pristine: Path | None = None) -> Path:
    """Empties a place, or makes it a copy of a folder."""
    shutil.rmtree(folder, ignore_errors=True)
    if pristine is not None:
        shutil.copytree(pristine, folder, symlinks=True)
    return folder


def stopped_in_the_middle(folder: Path) -> None:
    """Leaves a run that was stopped after its second step."""

    class Stopping(dl.training.loop.Console):
        def __init__(self) -> None:
            super().__init__(is_quiet=True)
            self.is_live = True

        def start(self, num_steps: int) -> None:
            pass

        def progress(self, step: int, *figures: Any) -> None:
            if step == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    dl.training.loop.Console = Stopping  # in a child, which ends with this
    train(folder, "--no-report")
