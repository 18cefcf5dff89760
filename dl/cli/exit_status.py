"""How a command ends: its exit status, and one line on the standard error where something is wrong."""

import re
import signal
import sys
from collections.abc import Callable

from dl.errors import StorageError, UserError
from dl.runs.streams import forgiving
from dl.sharding import platform_trouble
from dl.system.files import DISK_ERRORS
from dl.system.text import printable
from dl.training.signals import Stopped

_OUT_OF_MEMORY = re.compile("RESOURCE_EXHAUSTED|[Oo]ut of memory|bad_alloc")  # in the messages of XLA
MAX_LINE = 1_000  # characters of a message


def run_as_command(run: Callable[[], None]) -> None:
    """Runs a command; returns where it succeeds, and else exits with its status."""
    if status := exit_status(run):
        sys.exit(status)


def exit_status(run: Callable[[], int | None]) -> int:
    """Runs a command and returns its exit status: every way in which a command of `dl` ends.

    A user's mistake is one line on the standard error and status 2, or the status of its exception. Ctrl-C
    is 130 and SIGTERM 143, as in a shell. A reader of the output that goes away is not an error.
    """
    with forgiving():
        try:
            return run() or 0
        except UserError as error:
            print(f"error: {_shortened(printable(error))}", file=sys.stderr)
            return error.status
        except Stopped as stopped:
            print(stopped, file=sys.stderr)
            return 128 + stopped.number
        except KeyboardInterrupt:
            print("interrupted; all that was saved is kept", file=sys.stderr)
            return 128 + signal.SIGINT
        except (MemoryError, RuntimeError, AssertionError) as error:
            if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error)):
                reason = _shortened(printable(" ".join(str(error).split()) or "MemoryError"))
                said = f"out of memory; make the model or the batch smaller ({reason})"
            elif not (said := platform_trouble()):
                raise
            print(f"error: {said}", file=sys.stderr)
            return UserError.status
        except OSError as error:
            if error.errno not in DISK_ERRORS:
                raise
            where = f" ({error.filename})" if error.filename else ""
            print(f"error: {error.strerror}{where}; all that was saved is kept", file=sys.stderr)
            return StorageError.status


def _shortened(line: str) -> str:
    """Returns a line without its middle, where a word that somebody gave would fill the screen."""
    return line if len(line) <= MAX_LINE else f"{line[: MAX_LINE // 2]} … {line[-MAX_LINE // 2 :]}"
