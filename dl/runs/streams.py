"""Standard output and error whose failures never end a run: closed pipes, lost terminals, encodings."""

import contextlib
import functools
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any


class Forgiving:
    """A text stream that discards all text after its first failed write.

    Characters that its encoding lacks are written as escape codes.
    """

    def __init__(self, find: Callable[[], Any]):
        """Wraps the stream that `find` returns, which is called at each use."""
        self._find = find

    def write(self, text: str) -> int:
        stream = self._find()
        try:
            stream.write(text)
        except UnicodeEncodeError:
            stream.write(text.encode(stream.encoding, "backslashreplace").decode(stream.encoding))
        except (OSError, ValueError):  # ValueError: the stream was closed
            self._silence()
        return len(text)

    def flush(self) -> None:
        try:
            self._find().flush()
        except (OSError, ValueError):
            self._silence()

    def _silence(self) -> None:
        """Discards all further output, also that of libraries and of the interpreter at its end."""
        stream = self._find()
        with contextlib.suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
            stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._find(), name)


def standard_output() -> Any:
    """Returns a stream that writes to the present `sys.stdout` at each use."""
    # While a progress bar is shown, rich replaces `sys.stdout`.
    return Forgiving(lambda: getattr(sys.stdout, "rich_proxied_file", sys.stdout))


@contextlib.contextmanager
def forgiving() -> Iterator[None]:
    """A context for a command: printing never raises an error, and a warning is one line.

    If a line cannot be printed, the command continues.
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
    """Returns a warning as one line, without its place in the code, which does not help the user."""
    name = "" if category is UserWarning else f"{category.__name__}: "
    return f"warning: {name}{' '.join(str(message).split())}\n"


def _same(stream: Any) -> Any:
    return stream
