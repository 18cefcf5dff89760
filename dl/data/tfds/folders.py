"""Folders of data sets, and the sets that are prepared in them.

The data folder is an argument of `image_classification`. Without this argument it is the folder of
`using_data_dir`, which the commands set from --data-dir. Without both it is `TFDS_DATA_DIR`.

The folder of a set is `<data folder>/NAME[/CONFIG]/VERSION`. It holds `dataset_info.json` (written last),
`features.json` and one or more shards for each split.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dl.errors import UserError
from dl.system.bucket import BucketFolder, url_of

_REQUEST = re.compile(
    r"(?P<name>[A-Za-z]\w*)(/(?P<config>\w[\w.+=-]*))?(:(?P<version>\d+\.\d+\.\d+))?", re.ASCII
)
_VERSION = re.compile(r"\d+\.\d+\.\d+", re.ASCII)

_data_dir: ContextVar[Path | None] = ContextVar("data folder", default=None)


@dataclass(frozen=True)
class Request:
    """A requested data set, `NAME[/CONFIG][:VERSION]`."""

    name: str
    config: str | None = None
    version: str | None = None

    def __str__(self) -> str:
        config = f"/{self.config}" if self.config else ""
        return f"{self.name}{config}" + (f":{self.version}" if self.version else "")


def parse_request(dataset: str) -> Request:
    """Parses `NAME[/CONFIG][:VERSION]`. Raises UserError for any other text."""
    match = _REQUEST.fullmatch(dataset)
    if match is None:
        shown = dataset if len(dataset) <= 100 else f"{dataset[:100]}…"
        raise UserError(f"dataset={shown!r}: expected NAME, NAME/CONFIG or either with :1.2.3, or a path")
    return Request(match["name"], match["config"], match["version"])


def is_path(dataset: str) -> bool:
    """Returns whether `dataset` is the path of a folder or file, which `NAME[/CONFIG][:VERSION]` is not."""
    if not dataset or _REQUEST.fullmatch(dataset):
        return False
    return dataset[0] in "~." or os.sep in dataset or os.path.exists(dataset)


@contextlib.contextmanager
def using_data_dir(folder: str | Path | None) -> Iterator[None]:
    """Returns a context that sets the data folder. `None` means that it does not change."""
    token = _data_dir.set(_data_dir.get() if folder is None else Path(folder))
    try:
        yield
    finally:
        _data_dir.reset(token)


def data_dir_in_use() -> Path | None:
    """Returns the data folder of the innermost `using_data_dir`, or None outside of it."""
    return _data_dir.get()


def data_folder(data_dir: Path | None = None) -> Path:
    """Returns the data folder: `data_dir`, else `TFDS_DATA_DIR`, else `~/tensorflow_datasets`.

    The last one need not exist. A folder in a bucket, gs://BUCKET/FOLDER, is a path of `etils`.

    Raises:
      UserError: the given folder is not a readable folder.
      StorageError: the bucket cannot be reached.
    """
    named = os.environ.get("TFDS_DATA_DIR") if data_dir is None else data_dir
    if not named:
        return Path("~/tensorflow_datasets").expanduser()
    if url := url_of(named):
        return _bucket_folder(url)
    folder = Path(named).expanduser()
    advice = "--data-dir (TFDS_DATA_DIR) must name an existing folder"
    if not folder.exists():
        raise UserError(f"the data folder {named} does not exist: {advice}")
    if not folder.is_dir():
        raise UserError(f"the data folder {named} is not a folder: {advice}")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise UserError(f"the data folder {named} cannot be read: {advice}, with read permission")
    return folder


def _bucket_folder(url: str) -> Path:
    from etils import epath

    with BucketFolder(url).reaching():
        folder: Any = epath.Path(url)
        if not folder.exists():
            raise UserError(
                f"the data folder {url} is empty or does not exist; check --data-dir (TFDS_DATA_DIR)"
            )
    return folder


def user_cache() -> Path:
    """Returns the user's cache folder of `dl`, which is used if the data folder is not writable."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "dl"


def make_private(folder: Path) -> None:
    """Creates a folder that only this user can read, if it does not exist."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def is_writable(folder: Path) -> bool:
    """Returns whether `folder` may be written. A read-only folder may not, even by root, nor may a bucket."""
    if url_of(folder):
        return False
    try:
        return bool(folder.stat().st_mode & 0o222) and os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        return False


def versions(folder: Path) -> list[str]:
    """Returns the prepared versions in `folder`, newest last, without incomplete ones."""
    names = [entry.name for entry in _subfolders(folder) if _VERSION.fullmatch(entry.name)]
    return sorted(
        (name for name in names if (folder / name / "dataset_info.json").is_file()),
        key=lambda name: tuple(map(int, name.split("."))),
    )


def configs(folder: Path) -> list[str]:
    """Returns the configs of the set in `folder` that have a prepared version."""
    return sorted(entry.name for entry in _subfolders(folder) if versions(entry))


def prepared_names(root: Path) -> list[str]:
    """Returns the names of all prepared sets in the data folder `root`."""
    return sorted(f.name for f in _subfolders(root) if versions(f) or configs(f))


def _subfolders(folder: Path) -> list[Path]:
    try:
        return [f for f in folder.iterdir() if f.is_dir() and not f.name.startswith(".")]
    except OSError:
        return []


def locate(request: Request, root: Path) -> Path | None:
    """Returns the folder of the requested version, by default the newest, or None if it is not prepared.

    Raises:
      UserError: the set has configs, and the request has no config or an unknown one.
    """
    folder = root / request.name
    if request.config or not versions(folder):
        names = configs(folder)
        if not names:
            return None
        config = request.config or _default_config(folder)
        if config not in names:
            what = f"has no config {config!r}" if config else "needs a config"
            raise UserError(
                f"{request.name} in {root} {what}: choose one of "
                + ", ".join(f"{request.name}/{name}" for name in names)
            )
        folder = folder / config
    found = [v for v in versions(folder) if request.version in (None, v)]
    return folder / found[-1] if found else None


def _default_config(folder: Path) -> str | None:
    try:
        return json.loads((folder / ".config/metadata.json").read_bytes())["default_config_name"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
