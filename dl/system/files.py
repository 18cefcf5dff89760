"""Safe reading and writing of files: no partial files, no malicious links, no waiting for a pipe.

A file is written under a random temporary name and then renamed in one step. Temporary files of a killed
process are removed by the next write.
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
from dl.system.bucket import local_copy, url_of
from dl.system.locks import is_at, lock

_MAX_NAME_BYTES = 255  # of a file name, on nearly every file system
# With these errors no other file can be written or opened either.
DISK_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE),
    *(errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT),
}
# With these errors the path is valid, but the folder or the disk cannot be used.
_STORAGE_ERRORS = DISK_ERRORS | {errno.EACCES, errno.EPERM, errno.ENOENT}


def expand(path: Path) -> Path:
    """Returns a path in which the home folder replaces `~` or `~name`. Shells do not expand these after `=`.

    Raises:
      UserError: the home folder does not exist.
    """
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise UserError(f"the home folder of {path} is not known ({error}); write the whole path") from None


def storage_error(path: Path, error: OSError | ValueError, hint: str = "") -> UserError:
    """Returns the error for a path that cannot be written: a StorageError if the path itself is valid."""
    reason = getattr(error, "strerror", None) or str(error)
    kind = StorageError if getattr(error, "errno", None) in _STORAGE_ERRORS else UserError
    return kind(f"{path} cannot be written ({reason}); {hint or 'free some space, or choose another folder'}")


def replace_file(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Writes a file so that a reader sees either the old or the new file, even after a power failure.

    The content is written to a new file in the same folder. Its name is random and must not exist before
    (O_EXCL), so a malicious link is not followed. If `path` is a link, the link is replaced, not its target.
    The mode is that of every new file (umask).

    Args:
      path: path of the file.
      write: function that is called once with the new file, open for writing bytes.

    Raises:
      OSError: the file cannot be written. The old file is unchanged, and no temporary file is left.
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
    """Writes text as UTF-8 by `replace_file`. Surrogates that are not a pair are written as escapes."""
    replace_file(path, lambda file: file.write(text.encode("utf-8", "backslashreplace")))


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Removes the temporary files of killed calls of `replace_file` from a folder, for one or all files."""
    with contextlib.suppress(OSError):
        for path in list(folder.iterdir()):
            if is_leftover(path, name):
                with contextlib.suppress(OSError), path.open("r+b") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails if its writer is alive
                    path.unlink()


def is_leftover(path: Path, name: str | None = None) -> bool:
    """Returns whether a path is a temporary file of `replace_file`, for the file `name` or for any file."""
    found = re.fullmatch(r"\.(.+)\.[0-9a-f]{16}\.tmp", path.name, re.DOTALL)
    return found is not None and name in (None, found[1])


def read_regular(path: Path, max_bytes: int) -> bytes:
    """Returns the bytes of a regular file. A pipe, a device or a socket is an error and never blocks.

    Raises:
      FileNotFoundError: the file does not exist.
      UserError: it is not a regular file, it is larger than `max_bytes`, or it cannot be read.
    """
    try:
        # Without O_NONBLOCK, opening a pipe waits until another process writes to it.
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
        raise UserError(f"{path} cannot be read ({reason}); correct or remove it") from None
    if max(status.st_size, len(content)) > max_bytes:
        raise UserError(
            f"{path} has {max(status.st_size, len(content)):,} bytes, more than the limit of {max_bytes:,}; "
            "remove it"
        )
    return content


def named_path(word: str | Path) -> Path:
    """Returns an argument of a command line as a path, which need not exist.

    The URL of a folder in a bucket gives the path of a copy on the disk.

    Raises:
      UserError: the system does not accept the path, for example because it is too long or in a folder that
        cannot be read.
    """
    if (url := url_of(word)) is not None:
        return local_copy(url)
    try:
        os.lstat(word)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{word} cannot be used as a path ({reason}); choose another") from None
    return Path(word)


def why_no_output(path: Path) -> str | None:
    """Returns why `path` cannot be written as a new or replaced regular file; None if it can be."""
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


def storage_reason(error: BaseException) -> str | None:
    """Returns the message of the operating system; `None` if the error has another reason."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            return cause.strerror or str(cause)
        if found := re.search(r"\[OS error (\d+)|\[os_error_code='(\d+)'", str(cause)):
            return os.strerror(int(found[1] or found[2]))
        cause = cause.__cause__ or cause.__context__
    return None


def file_digest(path: Path, size: int | None = None) -> str:
    """Returns the SHA-256 of the bytes of a file, or of its first `size` bytes if it is longer."""
    content = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20 if size is None else min(size, 2**20)):
            content.update(block)
            size = None if size is None else size - len(block)
    return content.hexdigest()


def _create(path: Path) -> tuple[Path, int]:
    """Returns a new temporary file for `path` and its descriptor. The file is locked until it is closed."""
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
        os.close(descriptor)  # Another process has removed it as a leftover.


def _temporary(path: Path) -> Path:
    ending = f".{secrets.token_hex(8)}.tmp"
    name = path.name.encode("utf-8", "surrogateescape")[: _MAX_NAME_BYTES - len(ending) - 1]
    # The cut may split a character, which does not matter in a file name.
    return path.with_name(f".{name.decode('utf-8', 'surrogateescape')}{ending}")
