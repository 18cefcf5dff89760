"""Files that a reader sees whole: how paths are read, files replaced and checked, and folders locked.

A file is written under a temporary name, which nobody can guess or has planted, and takes its place in one
move. What a killed process left of one is removed the next time. A JSON file carries a digest of its content.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from dl.errors import StorageError, UserError

DIGEST_KEY = "sha256"
_MAX_JSON_BYTES = 2**30
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


@contextlib.contextmanager
def replacing(path: Path, binary: bool = False) -> Iterator[IO[Any]]:
    """Gives a new file to write, which takes the place of `path` at the end, and not after an error.

    Raises:
      UserError: it cannot be written; a StorageError where the disk or the folder is the reason.
    """
    temporary = None
    try:
        remove_leftovers(path.parent, path.name)
        temporary, descriptor = _create(path)
        kinds: dict[str, Any] = {"mode": "wb"} if binary else {"mode": "w", "encoding": "utf-8"}
        with os.fdopen(descriptor, **kinds) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
            temporary = None
    except OSError as error:
        raise storage_error(path, error) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Removes the temporary files of killed processes, of one file or of all in a folder."""
    pattern = r".+" if name is None else re.escape(name)
    with contextlib.suppress(OSError):
        for entry in list(folder.iterdir()):
            if re.fullmatch(rf"\.{pattern}\.[0-9a-f]{{16}}\.tmp", entry.name):
                with contextlib.suppress(OSError), entry.open("r+b") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # else its writer is alive
                    entry.unlink()


def _create(path: Path) -> tuple[Path, int]:
    """Returns a new temporary file for `path` and its descriptor, locked as long as that is open."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            if _lock(descriptor) and _is_at(descriptor, temporary):
                return temporary, descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # somebody took it for a leftover


def _lock(descriptor: int) -> bool:
    """Locks an open file; returns whether nobody else holds the lock, as where the disk knows no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Says whether a path still leads to an open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


class FolderLock:
    """An exclusive lock on a folder until `release`, or the end of the process; also between threads.

    It is a file `.lock` in the folder, removed at the end; one that a killed process left is taken over.

    Raises:
      UserError: another process or thread holds it.
      OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path):
        self._path = folder / ".lock"
        while True:
            self._descriptor = os.open(
                self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666
            )
            try:
                if not _lock(self._descriptor):
                    raise UserError(f"{folder} is in use by another process; wait for it, or choose another")
                if self.is_in_place():
                    return
            except BaseException:
                os.close(self._descriptor)
                raise
            os.close(self._descriptor)  # of a process that has just removed it

    def is_in_place(self) -> bool:
        """Says whether the folder is still where it was locked, not removed, moved or replaced."""
        return _is_at(self._descriptor, self._path)

    def release(self) -> None:
        if self.is_in_place():
            with contextlib.suppress(OSError):
                self._path.unlink()
        os.close(self._descriptor)


def write_json(path: Path, value: Any) -> Any:
    """Writes JSON so that a reader sees the old file or the new one; returns what `read_json` will.

    A mapping gets the key `sha256`, the digest of the rest, which `read_json` checks and takes off.

    Raises:
      UserError: it cannot be written.
    """
    value = json.loads(json.dumps(value))
    if isinstance(value, dict):
        value.pop(DIGEST_KEY, None)
        stored = {**value, DIGEST_KEY: json_digest(value)}
    with replacing(path) as file:
        json.dump(stored if isinstance(value, dict) else value, file, indent=2)
        file.write("\n")
    return value


def read_json(path: Path, hint: str = "restore it from a copy, or make it again") -> Any:
    """Returns what a JSON file says, None if there is none; one without a digest, as of old, is believed.

    Args:
      path: of the file.
      hint: what to do about a damaged one.

    Raises:
      UserError: it is damaged, or is not a file.
    """
    try:
        descriptor = os.open(
            path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        )  # a pipe would wait for a writer
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})") from None
    try:
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode) or found.st_size > _MAX_JSON_BYTES:
                raise ValueError("it is not a file, or too large")
            value = json.loads(file.read().decode())
        digest = value.pop(DIGEST_KEY, None) if isinstance(value, dict) else None
        if digest is not None and digest != json_digest(value):
            raise ValueError("its content does not match its digest")
    except (OSError, ValueError, RecursionError) as error:
        brief = str(error).splitlines()[0][:200]
        raise UserError(f"{path} is damaged ({brief}); {hint}") from None
    return value


def json_digest(value: Any) -> str:
    """Returns the SHA-256 of a JSON value, which neither layout nor the order of keys changes."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path, size: int | None = None) -> str:
    """Returns the SHA-256 of a file's bytes, or of its first `size` bytes; of fewer, if it has no more."""
    content = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20 if size is None else min(size, 2**20)):
            content.update(block)
            size = None if size is None else size - len(block)
    return content.hexdigest()
