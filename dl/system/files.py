"""Files written whole and read with care: no half of one, no planted link followed, no pipe waited for.

A file is written under a temporary name that nobody can guess, and takes its place in one move. What a killed
process left of one is removed the next time.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from dl.errors import StorageError, UserError
from dl.system.locks import is_at, lock

_MAX_NAME_BYTES = 255  # of a file, on nearly every file system
# That nothing more can be written or opened, whatever it is.
DISK_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE),
    *(errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT),
}
# What a folder does to a good path, in contrast to a path that cannot be one.
_STORAGE_ERRORS = DISK_ERRORS | {errno.EACCES, errno.EPERM, errno.ENOENT}


def expand(path: Path) -> Path:
    """Returns a path with the home folder in place of `~` or `~name`, which no shell expands behind `=`.

    Raises:
      UserError: there is no such home folder.
    """
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise UserError(f"{path} names no home folder ({error}); write the path out") from None


def storage_error(path: Path, error: OSError | ValueError, hint: str = "") -> UserError:
    """Returns what to say of a path that cannot be used: a StorageError where the path itself is right."""
    reason = getattr(error, "strerror", None) or str(error)
    kind = StorageError if getattr(error, "errno", None) in _STORAGE_ERRORS else UserError
    return kind(f"{path} cannot be written ({reason}); {hint or 'free some space, or choose another place'}")


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
    remove_leftovers(path.parent, path.name)
    temporary, descriptor = _create(path)
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


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Removes what killed calls of `replace_file` left in a folder, of one file or of all."""
    with contextlib.suppress(OSError):
        for path in list(folder.iterdir()):
            if is_leftover(path, name):
                with contextlib.suppress(OSError), path.open("r+b") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # else its writer is alive
                    path.unlink()


def is_leftover(path: Path, name: str | None = None) -> bool:
    """Whether a file has the name of what a killed `replace_file` leaves, of the file `name` or of any."""
    found = re.fullmatch(r"\.(.+)\.[0-9a-f]{16}\.tmp", path.name, re.DOTALL)
    return found is not None and name in (None, found[1])


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


def named_path(word: str | Path) -> Path:
    """Returns a word of a command line as a path, whether or not something lies there.

    Raises:
      UserError: the system refuses the very name: it is too long, or in a folder that may not be looked into.
    """
    try:
        os.lstat(word)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{word} cannot be used as a path ({reason}); choose another") from None
    return Path(word)


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


def file_digest(path: Path, size: int | None = None) -> str:
    """Returns the SHA-256 of a file's bytes, or of its first `size` bytes; of fewer, if it has no more."""
    content = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20 if size is None else min(size, 2**20)):
            content.update(block)
            size = None if size is None else size - len(block)
    return content.hexdigest()


def _create(path: Path) -> tuple[Path, int]:
    """Returns a new temporary file for `path` and its descriptor, locked as long as that is open."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        temporary = _temporary(path)
        descriptor = os.open(temporary, flags, 0o666)
        try:
            if lock(descriptor) and is_at(descriptor, temporary):
                return temporary, descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # somebody took it for a leftover


def _temporary(path: Path) -> Path:
    ending = f".{secrets.token_hex(8)}.tmp"
    name = path.name.encode("utf-8", "surrogateescape")[: _MAX_NAME_BYTES - len(ending) - 1]
    # A name cut inside a character is still a name.
    return path.with_name(f".{name.decode('utf-8', 'surrogateescape')}{ending}")
