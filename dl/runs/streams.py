"""Standard output and standard error that never cost a run: closed pipes, lost terminals, other alphabets."""

import contextlib
import functools
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any


class Forgiving:
    """A text stream that falls silent for good once nobody reads it or nothing can be written.

    Characters that its alphabet lacks are written as their codes.
    """

    def __init__(self, find: Callable[[], Any]):
        """Makes one of the stream that `find` returns at each use."""
        self._find = find

    def write(self, text: str) -> int:
        stream = self._find()
        try:
            stream.write(text)
        except UnicodeEncodeError:
            stream.write(text.encode(stream.encoding, "backslashreplace").decode(stream.encoding))
        except (OSError, ValueError):  # the second: it was closed
            self._silence()
        return len(text)

    def flush(self) -> None:
        try:
            self._find().flush()
        except (OSError, ValueError):
            self._silence()

    def _silence(self) -> None:
        """Sends everything to nowhere, also what libraries write and the interpreter flushes at its end."""
        stream = self._find()
        with contextlib.suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
            stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._find(), name)


def standard_output() -> Any:
    """Returns a stream to what standard output is when it is written to."""
    # While a progress bar is shown, rich stands in for it.
    return Forgiving(lambda: getattr(sys.stdout, "rich_proxied_file", sys.stdout))


@contextlib.contextmanager
def forgiving() -> Iterator[None]:
    """A context of a command: printing never raises, and a warning is one line.

    A line that cannot be shown is lost, not the work.
    """
    before, format_warning = (sys.stdout, sys.stderr), warnings.formatwarning
    warnings.formatwarning = _one_line
    wrapped: list[Any] = [
        None if stream is None else Forgiving(functools.partial(_same, stream)) for stream in before
    ]
    sys.stdout, sys.stderr = wrapped
    try:
        yield
    finally:
        for stream in wrapped:
            if stream is not None:
                stream.flush()
        sys.stdout, sys.stderr = before
        warnings.formatwarning = format_warning


def _one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Returns a warning for the one who runs a command; where in the code it was given helps nobody else."""
    name = "" if category is UserWarning else f"{category.__name__}: "
    return f"warning: {name}{' '.join(str(message).split())}\n"


def _same(stream: Any) -> Any:
    return stream
