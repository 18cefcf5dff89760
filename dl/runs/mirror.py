"""The small files of a run in a bucket: a folder on the disk, and the folder in the bucket that it mirrors.

The run writes its files on the disk, and they are uploaded before each checkpoint. Checkpoints are not among
them: orbax writes those into the bucket itself. So the log in the bucket is never behind the newest complete
checkpoint, and a machine with an empty disk resumes from the bucket alone.
"""

import shutil
import weakref
from pathlib import Path

from dl.system.bucket import BucketFolder, temporary_folder

_FIRST, _LAST = "run.json", "result.json"


class Mirror:
    """A folder on the disk for the small files of a run whose folder is in a bucket.

    Attributes:
      bucket: the folder in the bucket.
      folder: the folder on the disk, which is removed at the end of the process.
    """

    def __init__(self, url: str):
        """Downloads the small files.

        Raises:
          UserError: the bucket cannot be used.
          StorageError: the bucket cannot be reached.
        """
        self.bucket = BucketFolder(url)
        self.folder = temporary_folder(url)
        weakref.finalize(self, shutil.rmtree, self.folder.parent, ignore_errors=True)
        self._generations: dict[str, int] = {}
        self._uploaded: dict[str, tuple[int, int]] = {}
        self.pull()

    def pull(self) -> None:
        """Downloads the files that changed since the last call; subfolders are made, but stay empty."""
        for name, generation in self.bucket.list().items():
            top, _, below = name.partition("/")
            if top.startswith("."):
                continue
            if below:
                (self.folder / top).mkdir(exist_ok=True)
            elif self._generations.get(name) != generation:
                self.bucket.download(name, self.folder)
                self._generations[name] = generation
                self._uploaded[name] = _state(self.folder / name)

    def push(self) -> None:
        """Uploads the files that changed since the last call: run.json first, and result.json last."""
        names = [
            str(path.relative_to(self.folder))
            for path in self.folder.rglob("*")
            if path.is_file() and not path.name.startswith(".")
        ]
        for name in sorted(names, key=lambda name: (name == _LAST, name != _FIRST, name)):
            state = _state(self.folder / name)
            if self._uploaded.get(name) != state:
                self.bucket.upload(self.folder / name, name)
                self._uploaded[name] = state


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
