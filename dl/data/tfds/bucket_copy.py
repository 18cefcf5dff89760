"""Prepared data sets in a bucket of Google Cloud Storage, which are read from a copy on the disk."""

import contextlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

from dl.data.tfds import folders
from dl.errors import UserError
from dl.system.bucket import BucketFolder

_GENERATIONS = ".generations.json"  # written last


def bucket_copies(url: str) -> Path:
    """Returns the folder of the user's cache for the copies of the sets in the data folder `url`."""
    return folders.user_cache() / "buckets" / url.removeprefix("gs://")


def copy_set(url: str, target: Path) -> Path:
    """Copies a prepared set to `target`, unless this copy is there already.

    The copy is compared by the generations of the objects, so a set that was prepared again is copied again.
    It gets its final name when it is complete.

    Args:
      url: folder of the set, gs://BUCKET/…/VERSION.
      target: folder of the copy.

    Raises:
      UserError, StorageError: those of `BucketFolder`, or the disk has not enough space.
    """
    bucket = BucketFolder(url)
    generations = dict(bucket.list())
    if _generations(target) == generations:
        return target
    print(f"copying {url} to {target} once ...", file=sys.stderr, flush=True)
    folders.make_private(folders.user_cache())
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".copying-", dir=target.parent))
        try:
            for name in generations:
                bucket.download(name, staging)
            (staging / _GENERATIONS).write_text(json.dumps(generations), "utf-8")
            return _move(staging, target, generations)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"{url} cannot be copied to {target} ({error.strerror or error}); free some space, or set "
            "XDG_CACHE_HOME to a folder with more"
        ) from error


def _generations(folder: Path) -> dict[str, int] | None:
    try:
        return json.loads((folder / _GENERATIONS).read_bytes())
    except (OSError, ValueError):
        return None


def _move(staging: Path, target: Path, generations: dict[str, int]) -> Path:
    """Renames a complete copy. An older copy, or the equal one of a faster process, makes room first."""
    while True:
        try:
            return staging.rename(target)
        except OSError:
            if not target.exists():
                raise
            if _generations(target) == generations:  # of another process
                return target
            old = Path(tempfile.mkdtemp(prefix=".old-", dir=target.parent))
            with contextlib.suppress(OSError):  # another process was faster
                target.rename(old / target.name)
            shutil.rmtree(old, ignore_errors=True)
