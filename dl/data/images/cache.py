"""The decoded cache: the decoded arrays of a data set, so that the next start is fast.

There is one uncompressed `.npz` file for each set. It is in the data folder or, if that folder is not
writable, in the user's cache folder. It is used only if its key and its digest are right, and if only this
user or root can have written it. In a data folder that several users share, each user decodes the images.
"""

import contextlib
import hashlib
import json
import os
import stat
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from dl.data.images.disk_dataset import Stored
from dl.data.tfds import folders

_FORMAT = 1  # must be increased if the stored arrays or the decoding of images change
_META = "meta"
_STALE_SECONDS = 3600.0

Arrays = dict[str, np.ndarray]  # by "split/feature"


def checksum(arrays: Mapping[str, np.ndarray]) -> str:
    """Returns the SHA-256 of names, dtypes, shapes and contents, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()


def description_checksum(prepared: Stored) -> str:
    """Returns the SHA-256 of the description of a set and the names and sizes of its shards.

    The shards are not read.
    """
    parts = [prepared.name, prepared.version, prepared.digest, prepared.image_shape]
    parts += ["fast"] * prepared.is_fast
    parts += [(split, path.name, _stat(prepared, path).st_size) for split, path in _shards(prepared)]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def cache_key(prepared: Stored) -> str:
    """Returns a key that changes if anything changes that the decoded arrays depend on.

    Raises:
      UserError: a shard is missing.
    """
    parts: list[object] = [_FORMAT, prepared.name, prepared.version, prepared.digest]
    parts.append(prepared.image_shape if prepared.is_resized else "as stored")
    parts += ["fast"] * prepared.is_fast
    for split, path in _shards(prepared):
        stat = _stat(prepared, path)
        parts.append((split, path.name, stat.st_size, stat.st_mtime_ns))
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def load(prepared: Stored, root: Path | None, key: str, what: str = "") -> tuple[Arrays, str] | None:
    """Returns the arrays of `prepared` and their `checksum`, or None if there is no valid cache.

    Args:
      prepared: the data set.
      root: data folder of the set. `None` means that its folder must not be written.
      key: `cache_key(prepared)`.
      what: name of a part of the set. An empty name means the whole set.
    """
    for path in _paths(prepared, root, what):
        with contextlib.suppress(Exception):  # A damaged cache is ignored.
            with _open_own(path) as file, np.load(file, allow_pickle=False) as stored:
                meta = json.loads(stored[_META].tobytes())
                if meta["key"] != key:
                    continue
                arrays = {name: stored[name] for name in stored.files if name != _META}
            if checksum(arrays) == meta["checksum"]:
                return arrays, meta["checksum"]
    return None


def store(prepared: Stored, root: Path | None, key: str, arrays: Arrays, what: str = "") -> str:
    """Writes `arrays` to the first folder that is writable, if there is one. Returns their checksum.

    `key` must be computed before decoding, so that a set that changes meanwhile is decoded again. A reader
    sees either the old or the new file.
    """
    digest = checksum(arrays)
    meta = json.dumps({"key": key, "checksum": digest})
    content: Any = {_META: np.frombuffer(meta.encode(), np.uint8), **arrays}
    for path in _paths(prepared, root, what):
        temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            if path.parent.parent == folders.user_cache():
                folders.make_private(folders.user_cache())
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(path.parent)
            with open(temporary, "xb", opener=_for_others_to_read) as file:
                np.savez(file, **content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            break
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
    return digest


def _open_own(path: Path) -> IO[bytes]:
    """Opens a file that only this user or root can have written. Raises PermissionError for any other."""
    # O_NONBLOCK prevents waiting for a writer if the file is a pipe.
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    status = os.fstat(file.fileno())
    is_own = status.st_uid in (0, os.geteuid()) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if not is_own or not stat.S_ISREG(status.st_mode):
        file.close()
        raise PermissionError(f"{path} can be written by other users; remove it")
    return file


def _for_others_to_read(name: str, flags: int) -> int:
    return os.open(name, flags, 0o644)  # Others must not write the file, whatever the umask is.


def _shards(prepared: Stored) -> list[tuple[str, Path]]:
    return [(split, path) for split, shards in prepared.shards.items() for path in shards]


def _stat(prepared: Stored, path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise prepared.damaged(path, error.strerror) from None


def _paths(prepared: Stored, root: Path | None, what: str) -> list[Path]:
    """Returns the possible paths of the cache of `prepared`, in the data folder only if it is writable."""
    identity = f"{prepared.folder.resolve()} {prepared.image_shape if prepared.is_resized else ''}"
    short = hashlib.sha256(identity.encode()).hexdigest()[:8]
    name = "-".join([prepared.name.replace("/", "-"), prepared.version, short, *[what] * bool(what)]) + ".npz"
    beside = [root / ".dl_decoded" / name] if root and folders.is_writable(root) else []
    return [*beside, folders.user_cache() / "decoded" / name]


def _remove_leftovers(folder: Path) -> None:
    """Removes temporary files of processes that were killed while writing."""
    for path in folder.glob("*.npz.*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                path.unlink()
