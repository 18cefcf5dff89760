"""Folders of Google Cloud Storage, gs://BUCKET/FOLDER. Google's client repeats failed requests.

A bucket has neither folders nor renames, but an object is replaced in one step, and only from the generation
that the writer has seen if it asks for that.
"""

import atexit
import contextlib
import functools
import importlib.util
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dl.errors import StorageError, UserError

COMMITTED = "commit_success.txt"  # the object that orbax writes last into the folder of a checkpoint
NEW = 0  # the generation of an object that does not exist

_URL = re.compile(r"gs:/+([^/]+)/*(.*?)/*", re.DOTALL)
_STEP = re.compile(r"((?:.*/)?checkpoints/\d+)/.*", re.DOTALL)
_LIBRARIES = {"google", "gcsfs", "aiohttp", "requests", "urllib3"}
# What TensorStore says of a server, with the URL of the object. An object that is missing is another matter.
_TENSORSTORE = re.compile(
    r"UNAVAILABLE|DEADLINE_EXCEEDED|PERMISSION_DENIED|UNAUTHENTICATED|RESOURCE_EXHAUSTED.*gs://"
    r"|CURL error|HTTP response code: (401|403|429|5\d\d)"
)


def url_of(path: Path | str) -> str | None:
    """Returns the URL that a path stands for, without a slash at its end; `None` for a local path.

    `pathlib` turns gs://BUCKET/FOLDER into gs:/BUCKET/FOLDER, which counts as the URL.

    Raises:
      UserError: the URL names no folder.
    """
    found = _URL.fullmatch(str(path))
    if found is None:
        if re.match(r"gs:/", str(path)):
            raise UserError(f"{path} names no bucket; write gs://BUCKET/FOLDER")
        return None
    if not found[2]:
        raise UserError(f"gs://{found[1]} is a whole bucket; write gs://{found[1]}/FOLDER")
    return f"gs://{found[1]}/{found[2]}"


def refuse_url(path: Path | str | None, what: str) -> None:
    """Raises UserError if a path is a URL: `what` names what is kept on a disk only."""
    if path is not None and (url := url_of(path)) is not None:
        raise UserError(f"{url} is in a bucket, but {what} needs a folder on a disk; give a local path")


class BucketFolder:
    """A folder of a bucket. Names of its objects are relative to it.

    Attributes:
      url: gs://BUCKET/FOLDER.
    """

    def __init__(self, url: str):
        """Connects to the bucket.

        Raises:
          UserError: a package or the credentials are missing.
        """
        self.url = url
        name, _, folder = url.removeprefix("gs://").partition("/")
        self._prefix = f"{folder}/"
        self._bucket = _client(url).bucket(name)

    def list(self) -> Mapping[str, int]:
        """Returns the generation of each object in the folder and its subfolders, by name."""
        with self.reaching():
            blobs = self._bucket.client.list_blobs(self._bucket, prefix=self._prefix)
            return {
                blob.name.removeprefix(self._prefix): int(blob.generation)
                for blob in blobs
                if not blob.name.endswith("/")  # made by consoles for empty folders
            }

    def download(self, name: str, folder: Path) -> None:
        """Writes an object to the file of its name in a folder on the disk.

        Raises:
          UserError: the name leaves the folder, or the errors of `reaching`.
        """
        if name.startswith("/") or ".." in name.split("/"):
            raise UserError(f"{self.url}/{name} has a name that leaves its folder; remove this object")
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with self.reaching():
            self._blob(name).download_to_filename(str(path))

    def upload(self, path: Path, name: str) -> None:
        """Replaces an object by a file."""
        with self.reaching():
            self._blob(name).upload_from_filename(str(path), retry=_retry())

    def read(self, name: str) -> tuple[str, int] | None:
        """Returns the text and the generation of an object; `None` if there is none."""
        from google.api_core.exceptions import NotFound

        with self.reaching():
            blob = self._blob(name)
            try:
                text = blob.download_as_bytes().decode("utf-8", "replace")
                blob.reload()
            except NotFound:
                if not self._bucket.client.bucket(self._bucket.name).exists():
                    raise
                return None
            return text, int(blob.generation)

    def replace(self, name: str, text: str, generation: int) -> int | None:
        """Replaces an object of a known generation; `NEW` creates it.

        Returns:
          The new generation; `None` if the object has another generation by now.
        """
        from google.api_core.exceptions import PreconditionFailed

        with self.reaching():
            blob = self._blob(name)
            try:
                blob.upload_from_string(text, if_generation_match=generation, retry=_retry())
            except PreconditionFailed:
                # A repeated request whose first answer was lost fails because it had succeeded.
                there = self.read(name)
                return there[1] if there is not None and there[0] == text else None
            return int(blob.generation)

    def remove(self, name: str, generation: int) -> None:
        """Removes an object of a known generation; another generation stays."""
        from google.api_core.exceptions import NotFound, PreconditionFailed

        with self.reaching(), contextlib.suppress(NotFound, PreconditionFailed):
            self._blob(name).delete(if_generation_match=generation, retry=_retry())

    @contextlib.contextmanager
    def reaching(self) -> Iterator[None]:
        """Turns an error of the network, or an answer of the server, into one line.

        Raises:
          UserError: the bucket does not exist, or this account must not use it.
          StorageError: the server did not answer, or had an error, although requests were repeated.
        """
        try:
            yield
        except Exception as error:
            reason = why_unreachable(error)
            if reason is None:
                raise
            if getattr(error, "code", None) in (401, 403, 404):
                raise UserError(
                    f"{self.url} cannot be used ({reason}); check the name of the bucket, and that this "
                    "account may read and write it"
                ) from error
            raise StorageError(
                f"{self.url} cannot be reached ({reason}); all that was saved is kept; run the same command "
                "again to resume"
            ) from error

    def _blob(self, name: str) -> Any:
        return self._bucket.blob(self._prefix + name)


def complete(names: Mapping[str, int]) -> list[str]:
    """Returns the names of objects without those of incomplete checkpoints."""
    return [
        name
        for name in names
        if (found := _STEP.fullmatch(name)) is None or f"{found[1]}/{COMMITTED}" in names
    ]


def local_copy(url: str) -> Path:
    """Returns a copy of a folder on the disk, which is removed at the end of the process.

    Incomplete checkpoints and files whose names begin with a dot are left out.

    Raises:
      UserError: the folder is empty, or the errors of `BucketFolder`.
    """
    bucket = BucketFolder(url)
    names = [name for name in complete(bucket.list()) if not name.startswith(".")]
    if not names:
        raise UserError(f"{url} is empty or does not exist; check its name")
    folder = temporary_folder(url)
    atexit.register(shutil.rmtree, folder.parent, ignore_errors=True)
    for name in names:
        bucket.download(name, folder)
    return folder


def publish(path: Path, place: Path | str) -> None:
    """Uploads a file that was written into the copy of a folder, if `place` is the URL of this folder."""
    if (url := url_of(place)) is not None:
        BucketFolder(url).upload(path, path.name)
        print(f"wrote {url}/{path.name}")


def temporary_folder(url: str) -> Path:
    """Creates an empty folder on the disk with the name of a folder in a bucket."""
    folder = Path(tempfile.mkdtemp(prefix="dl-gs-")) / url.rpartition("/")[2]
    folder.mkdir()
    return folder


def why_unreachable(error: BaseException) -> str | None:
    """Returns why a server did not serve a request; `None` if the error has another reason."""
    cause: BaseException | None = error
    while cause is not None:
        text = " ".join(str(cause).split())[:200] or type(cause).__name__
        if type(cause).__module__.partition(".")[0] in _LIBRARIES or _TENSORSTORE.search(str(cause)):
            return text
        cause = cause.__cause__ or cause.__context__
    return None


def _retry() -> Any:
    """Returns the policy of repetition: with growing pauses, for two minutes."""
    from google.cloud.storage.retry import DEFAULT_RETRY

    return DEFAULT_RETRY


@functools.cache
def _client_of_process() -> Any:
    from google.cloud import storage

    return storage.Client()


def _client(url: str) -> Any:
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(f"{url} needs the package gcsfs, which is not installed; run pip install -e '.[gcs]'")
    from google.auth.exceptions import GoogleAuthError

    try:
        return _client_of_process()
    except (GoogleAuthError, OSError) as error:  # OSError: no project
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{url} needs an account of Google Cloud ({reason}); run gcloud auth application-default login, "
            "and set GOOGLE_CLOUD_PROJECT"
        ) from error
