"""How a command ends: its exit status, and one line on the standard error where something is wrong."""

import contextlib
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

from dl.errors import StorageError, UserError
from dl.runs.streams import forgiving
from dl.sharding import platform_trouble
from dl.system.files import DISK_ERRORS
from dl.system.text import printable
from dl.training import processes
from dl.training.signals import Stopped

_OUT_OF_MEMORY = re.compile("RESOURCE_EXHAUSTED|[Oo]ut of memory|bad_alloc")  # in the messages of XLA
_PATIENCE = 5.0  # seconds for the threads of libraries after storage has failed
MAX_LINE = 1_000  # characters of a message


def run_as_command(run: Callable[[], None]) -> None:
    """Runs a command; returns where it succeeds, and else exits with its status."""
    if status := exit_status(run):
        end(status)


def exit_status(run: Callable[[], int | None]) -> int:
    """Runs a command and returns its exit status: every way in which a command of `dl` ends.

    A user's mistake is one line on the standard error and status 2, or the status of its exception. Ctrl-C
    is 130 and SIGTERM 143, as in a shell. A reader of the output that goes away is not an error. Of several
    processes only the first prints the line.
    """
    with forgiving():
        try:
            status, line = _outcome(run)
        except Exception as error:
            together = processes.current()
            if isinstance(together, processes.Together):
                together.await_loss()
                traceback.print_exc()
                together.leave(1, _shortened(printable(f"{type(error).__name__}: {error}")))
            raise
        together = processes.current()
        if line and together.is_first:
            print(line, file=sys.stderr)
        together.leave(status, line)
        return status


def end(status: int) -> NoReturn:
    """Exits with a status, after a failure of storage also if threads of libraries do not end."""
    if status == StorageError.status:
        threading.Thread(target=_end_process, args=(status,), daemon=True).start()
    sys.exit(status)


def _end_process(status: int) -> None:
    """Ends the process soon after its main thread has ended.

    Python waits for all threads. Where a folder cannot be made, those of orbax wait for it for many minutes.
    """
    threading.main_thread().join()
    time.sleep(_PATIENCE)
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(status)


def _outcome(run: Callable[[], int | None]) -> tuple[int, str]:
    """Runs a command; returns its exit status, and the line that explains it, empty after success."""
    try:
        return run() or 0, ""
    except UserError as error:
        return error.status, f"error: {_shortened(printable(error))}"
    except Stopped as stopped:
        return 128 + stopped.number, str(stopped)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT, "interrupted; all that was saved is kept"
    except (MemoryError, RuntimeError, AssertionError) as error:
        if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error)):
            reason = _shortened(printable(" ".join(str(error).split()) or "MemoryError"))
            what = f"out of memory; make the model or the batch smaller ({reason})"
        elif not (what := platform_trouble()):
            raise
        return UserError.status, f"error: {what}"
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        where = f" ({error.filename})" if error.filename else ""
        return StorageError.status, f"error: {error.strerror}{where}; all that was saved is kept"


def _shortened(line: str) -> str:
    """Returns a line without its middle, where a word that somebody gave would fill the screen."""
    return line if len(line) <= MAX_LINE else f"{line[: MAX_LINE // 2]} … {line[-MAX_LINE // 2 :]}"
