"""Files written whole and read with care: no half of one, no planted link followed, no pipe waited for."""

import contextlib
import json
import os
import re
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from dl.errors import UserError

MAX_JSON_BYTES = 64 * 2**20
_MAX_DEPTH = 64  # of JSON
_MAX_NAME_BYTES = 255  # of a file, on nearly every file system
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")


def replace_file(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Writes a file so that a reader sees the old one or the new one, also after a power cut.

    The content goes to a new file beside it, whose name cannot be guessed and which must not exist before
    (O_EXCL): a link that somebody planted is not followed. Where `path` itself is a link, the link is
    replaced, not what it points to. The mode is that of every new file (umask).

    Args:
      path: the file.
      write: is called once with a new file, open for writing bytes.

    Raises:
      OSError: it cannot be written. What stood there before stands, and nothing is left beside it.
    """
    temporary = _temporary(path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o666)
    try:
        with open(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def replace_text(path: Path, text: str) -> None:
    """Writes text as UTF-8, as `replace_file` does; half a surrogate pair becomes an escape."""
    replace_file(path, lambda file: file.write(text.encode("utf-8", "backslashreplace")))


def remove_leftovers(folder: Path) -> None:
    """Removes what a killed `replace_file` left in a folder. Only for who has the folder to themselves."""
    for path in folder.iterdir():
        if _TEMPORARY.fullmatch(path.name) and not path.is_dir():
            path.unlink(missing_ok=True)


def is_leftover(path: Path) -> bool:
    """Whether a file has the name of what a killed `replace_file` leaves."""
    return _TEMPORARY.fullmatch(path.name) is not None


def read_regular(path: Path, max_bytes: int) -> bytes:
    """Returns the bytes of a regular file. A pipe, a device or a socket is refused and never waited for.

    Raises:
      FileNotFoundError: there is no such file.
      UserError: it is something else than a regular file, larger than `max_bytes`, or cannot be read.
    """
    try:
        # Without O_NONBLOCK the opening of a pipe waits for somebody who writes to it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UserError(f"{path} is not a regular file; remove it")
            content = file.read(max_bytes + 1) if status.st_size <= max_bytes else b""
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read ({reason}); mend or remove it") from None
    if max(status.st_size, len(content)) > max_bytes:
        raise UserError(
            f"{path} has {max(status.st_size, len(content)):,} bytes, more than the {max_bytes:,} that are "
            "read; remove it"
        )
    return content


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Returns what a JSON file says; None where there is no such file.

    Raises:
      UserError: it is no JSON, or as `read_regular`.
    """
    try:
        value = json.loads(read_regular(path, max_bytes).decode("utf-8"))
    except FileNotFoundError:
        return None
    except RecursionError:
        pass
    except ValueError as error:  # no UTF-8, no JSON, a number of thousands of digits
        raise UserError(f"{path} is not readable as JSON ({error}); remove it") from None
    else:
        # A level at a time: what walks through the value afterwards may be a recursion.
        level = [value]
        for _ in range(_MAX_DEPTH):
            branches = [branch for branch in level if isinstance(branch, dict | list)]
            level = [item for b in branches for item in (b.values() if isinstance(b, dict) else b)]
            if not branches:
                return value
    raise UserError(f"{path} is nested more than {_MAX_DEPTH} deep; remove it")


def why_no_output(path: Path) -> str | None:
    """Returns why nothing can be written to `path` as a new or replaced regular file; None if it can."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        parent = path.parent
        if not parent.is_dir():
            return f"there is no folder {parent}"
        return None if os.access(parent, os.W_OK | os.X_OK) else f"the folder {parent} cannot be written"
    except (OSError, ValueError) as error:
        return str(getattr(error, "strerror", None) or error)
    if stat.S_ISDIR(status.st_mode):
        return "it is a folder"
    if stat.S_ISLNK(status.st_mode):
        return "it is a link"
    if not stat.S_ISREG(status.st_mode):
        return "it is not a regular file"
    if not os.access(path.parent, os.W_OK | os.X_OK):
        return f"the folder {path.parent} cannot be written"
    return None


def _temporary(path: Path) -> Path:
    ending = f".{secrets.token_hex(8)}.tmp"
    name = path.name.encode("utf-8", "surrogateescape")[: _MAX_NAME_BYTES - len(ending) - 1]
    # A name cut inside a character is still a name.
    return path.with_name(f".{name.decode('utf-8', 'surrogateescape')}{ending}")
