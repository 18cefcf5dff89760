"""A run whose folder is in a bucket of Google Cloud Storage: gs://BUCKET/FOLDER."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dl.errors import StorageError
from dl.runs.definition import Definition
from dl.runs.mirror import Mirror
from dl.runs.run import Run
from dl.system.bucket import NEW, url_of
from dl.system.bucket_lock import EXPIRY, BucketLock


class BucketRun(Run):
    """A run that writes its small files into a folder on the disk, which a folder in a bucket mirrors.

    Checkpoints are written into the bucket. Each process has a folder of its own on the disk, and only the
    first process uploads its files.
    """

    def __init__(
        self, url: str, definition: Definition, resume_command: str | Callable[[Path], str] | None = None
    ):
        """Downloads the small files.

        Raises:
          UserError: the bucket cannot be used, or a package is missing.
          StorageError: the bucket cannot be reached.
        """
        self._mirror = Mirror(url)
        self._has_folder = False
        super().__init__(self._mirror.folder, definition, resume_command)

    @property
    def where(self) -> str:
        """The URL of the folder, as text for the user."""
        return self._mirror.bucket.url

    @property
    def checkpoints_path(self) -> Any:
        """The folder of the checkpoints in the bucket, as a path of `etils`."""
        from etils import epath

        return epath.Path(f"{self.where}/checkpoints")

    def publish_report(self) -> None:
        """Uploads the report of the finished run, and the file of its classes."""
        for path in sorted(self.folder.glob(f"{self.report_path.stem}[.-]*")):
            self._mirror.bucket.upload(path, path.name)

    def _take_lock(self) -> BucketLock:
        return BucketLock(self._mirror.bucket)

    def _check_in_place(self) -> None:
        if self._lock is not None and not self._lock.is_in_place():
            raise StorageError(
                f"{self.where} was taken over by another process, because this one did not renew its lock "
                f"for {EXPIRY:.0f} s; wait for that process, then run the same command again"
            )

    def _pull(self) -> None:
        self._mirror.pull()

    def _push(self) -> None:
        if self._lock is not None:
            self._mirror.push()
            if not self._has_folder:  # orbax lists it before it writes the first checkpoint
                self._mirror.bucket.replace("checkpoints/.folder", "", NEW)
                self._has_folder = True


def run_at(
    folder: Path | str | None,
    definition: Definition,
    resume_command: str | Callable[[Path], str] | None = None,
) -> Run:
    """Returns the run in a folder on a disk or at a URL. `None` means a new folder on the disk.

    Raises:
      UserError, StorageError: as `BucketRun`.
    """
    url = None if folder is None else url_of(folder)
    if url is None:
        return Run(folder, definition, resume_command)
    return BucketRun(url, definition, resume_command)
