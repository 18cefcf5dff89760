"""The decoded cache: a set's arrays as they were after decoding, so that a second start is instant.

One uncompressed `.npz` a set, beside the prepared sets or, if that folder is not to be written,
under the user's cache folder. What it holds is believed only if its key and its digest are right, and if
nobody but this user or root can have written it: in a data folder that several people share, each one
decodes for himself.
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

_FORMAT = 1  # raise it when what is stored, or how images are decoded, changes
_META = "meta"
_STALE_SECONDS = 3600.0

Arrays = dict[str, np.ndarray]  # by "split/feature"


def checksum(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over names, dtypes, shapes and contents, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()


def description_checksum(prepared: Stored) -> str:
    """SHA-256 over the set's description and its shards' names and sizes; no shard is read."""
    parts = [prepared.name, prepared.version, prepared.digest, prepared.image_shape]
    parts += [(split, path.name, _stat(prepared, path).st_size) for split, path in _shards(prepared)]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def cache_key(prepared: Stored) -> str:
    """Changes with anything that the decoded arrays depend on.

    Raises:
      UserError: if a shard is missing.
    """
    parts: list[object] = [_FORMAT, prepared.name, prepared.version, prepared.digest]
    parts.append(prepared.image_shape if prepared.is_resized else "as stored")
    for split, path in _shards(prepared):
        stat = _stat(prepared, path)
        parts.append((split, path.name, stat.st_size, stat.st_mtime_ns))
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def load(prepared: Stored, root: Path | None, key: str, what: str = "") -> tuple[Arrays, str] | None:
    """Returns the arrays of `prepared` and their `checksum`; None if no cache holds them intact.

    Args:
      prepared: the set.
      root: the data folder that it lies in; None for a folder that is not to be written.
      key: `cache_key(prepared)`.
      what: of the set; empty for all of it.
    """
    for path in _paths(prepared, root, what):
        with contextlib.suppress(Exception):  # a broken cache of whatever kind is no cache
            with _open_own(path) as file, np.load(file, allow_pickle=False) as stored:
                meta = json.loads(stored[_META].tobytes())
                if meta["key"] != key:
                    continue
                arrays = {name: stored[name] for name in stored.files if name != _META}
            if checksum(arrays) == meta["checksum"]:
                return arrays, meta["checksum"]
    return None


def store(prepared: Stored, root: Path | None, key: str, arrays: Arrays, what: str = "") -> str:
    """Writes `arrays` to the first place that takes them, if any does; returns their checksum.

    `key` is from before they were decoded, so that a set which changes meanwhile is decoded again.
    A reader sees the old file or the new one, never a part of one.
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
    """Opens a file that only this user or root can have written; raises PermissionError for any other."""
    # Without waiting for whoever writes, should it be a pipe.
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    status = os.fstat(file.fileno())
    is_own = status.st_uid in (0, os.geteuid()) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if not is_own or not stat.S_ISREG(status.st_mode):
        file.close()
        raise PermissionError(f"others can write {path}")
    return file


def _for_others_to_read(name: str, flags: int) -> int:
    return os.open(name, flags, 0o644)  # whatever the umask lets others write


def _shards(prepared: Stored) -> list[tuple[str, Path]]:
    return [(split, path) for split, shards in prepared.shards.items() for path in shards]


def _stat(prepared: Stored, path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise prepared.damaged(path, error.strerror) from None


def _paths(prepared: Stored, root: Path | None, what: str) -> list[Path]:
    """Where the cache of `prepared` may lie; beside the set only if that folder may be written."""
    place = f"{prepared.folder.resolve()} {prepared.image_shape if prepared.is_resized else ''}"
    short = hashlib.sha256(place.encode()).hexdigest()[:8]
    name = "-".join([prepared.name.replace("/", "-"), prepared.version, short, *[what] * bool(what)]) + ".npz"
    beside = [root / ".dl_decoded" / name] if root and folders.is_writable(root) else []
    return [*beside, folders.user_cache() / "decoded" / name]


def _remove_leftovers(folder: Path) -> None:
    """Unlinks what processes that were killed while writing have left behind."""
    for path in folder.glob("*.npz.*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                path.unlink()
