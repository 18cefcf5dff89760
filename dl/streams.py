"""Standard output and standard error that never cost a run: closed pipes, lost terminals, other alphabets."""

import contextlib
import functools
import os
import sys
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
    """A context in which printing never raises: a line that cannot be shown is lost, not the work."""
    before = sys.stdout, sys.stderr
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


def _same(stream: Any) -> Any:
    return stream
