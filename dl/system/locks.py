"""Locks between processes and threads: on an open file, and on a whole folder."""

import contextlib
import errno
import fcntl
import os
from pathlib import Path

from dl.errors import UserError


def lock(descriptor: int, is_shared: bool = False) -> bool:
    """Locks an open file, shared or for this process alone.

    Returns False if another process holds a lock that excludes this one, True without support for locks.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
    return True


def is_at(descriptor: int, path: Path) -> bool:
    """Returns whether a path still leads to an open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


class FolderLock:
    """A lock on a folder until `release` or the end of the process. It also works between threads.

    It is exclusive, or shared with the other holders of a shared lock. It is a file `.lock` in the folder,
    which is removed at the end. The file of a killed process is reused.

    Raises:
      UserError: another process or thread holds the lock.
      OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path, is_shared: bool = False):
        self._path = folder / ".lock"
        while True:
            self._descriptor = os.open(
                self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666
            )
            try:
                if not lock(self._descriptor, is_shared):
                    raise UserError(
                        f"{folder} is in use by another process; wait for it, or choose another folder"
                    )
                if self.is_in_place():
                    return
            except BaseException:
                os.close(self._descriptor)
                raise
            os.close(self._descriptor)  # Another process has just removed this file.

    def is_in_place(self) -> bool:
        """Returns whether the locked folder still exists and was neither moved nor replaced."""
        return is_at(self._descriptor, self._path)

    def release(self) -> None:
        # The file of a shared lock is removed by the last holder.
        if self.is_in_place() and lock(self._descriptor):
            with contextlib.suppress(OSError):
                self._path.unlink()
        os.close(self._descriptor)
