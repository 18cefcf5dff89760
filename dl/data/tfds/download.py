"""Raw files of data sets, from a folder or from the network, verified by the checksums of TFDS."""

import hashlib
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums, resource

from dl.errors import UserError

PREFLIGHT_SECONDS = 5.0


class UnreachableError(UserError):
    """Raw files are missing and cannot be downloaded. `reason` is the message without the advice."""

    def __init__(self, reason: str, advice: str):
        super().__init__(f"{reason}: {advice}")
        self.reason, self.advice = reason, advice


def unreachable(name: str, urls: Mapping[str, str], root: Path, reason: str) -> UnreachableError:
    """Returns the error for the set `name`, whose raw files should come from `urls` (by file name)."""
    host = urlsplit(next(iter(urls.values()))).netloc
    return UnreachableError(
        f"{name} is not prepared in {root}, its raw files are not all in {root / 'manual'}, "
        f"and {host} could not be reached ({reason})",
        f"connect to the network, or put {', '.join(urls)} into {root / 'manual'}, or set --data-dir "
        f"(TFDS_DATA_DIR) to a folder that holds {name}",
    )


def size(urls: Mapping[str, str]) -> int:
    """Returns the total size of the raw files, in bytes."""
    return sum(int(checksums.get_all_url_infos()[url].size) for url in urls.values())


def provide(name: str, urls: Mapping[str, str], root: Path) -> Path | None:
    """Searches for the raw files of the set `name` in the data folder `root`.

    Returns:
      The folder with verified raw files. `None` means that all of them must be downloaded.

    Raises:
      UnreachableError: files are missing and cannot be downloaded.
      UserError: a file differs from the one that TFDS knows.
    """
    candidates = [root / "manual" / name, root / "manual", root / "downloads" / "manual"]
    held = {folder: [file for file in urls if (folder / file).is_file()] for folder in candidates}
    manual = max(candidates, key=lambda folder: len(held[folder]))
    for file in held[manual]:
        verify(manual / file, urls[file])
    for file, url in urls.items():
        if file not in held[manual]:
            fetched = resource.get_dl_fname(url, checksums.get_all_url_infos()[url].checksum)
            if not resource.is_locally_cached(tfds.core.Path(root / "downloads" / name / fetched)):
                if reason := _why_not(url):
                    raise unreachable(name, urls, root, reason)
                break
    return manual if held[manual] else None


def download(dl_manager: Any, urls: Mapping[str, str]) -> dict[str, Path]:
    """Returns the path of each file in TFDS's download manager. All files are verified, also cached ones."""
    paths = {file: Path(path) for file, path in dl_manager.download(dict(urls)).items()}
    for file, path in paths.items():
        verify(path, urls[file])
    return paths


def verify(path: Path, url: str) -> None:
    """Raises UserError unless a file has the size and SHA-256 that TFDS knows of `url`."""
    expected = checksums.get_all_url_infos()[url]
    with path.open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    size = path.stat().st_size
    if (size, got) != (int(expected.size), expected.checksum):
        raise UserError(
            f"{path} is not the file of {url}: it has {size} bytes and sha256 {got}, expected "
            f"{int(expected.size)} bytes and {expected.checksum}: delete it and download it again"
        )


def _why_not(url: str) -> str:
    """Returns "" if `url` starts to send a gzip file within `PREFLIGHT_SECONDS`, otherwise the reason.

    The request runs in a thread, because a name server that does not answer can block for a long time.
    """
    outcome = []

    def attempt() -> None:
        try:
            with requests.get(url, stream=True, timeout=PREFLIGHT_SECONDS / 2) as response:
                is_gzip = response.raw.read(2) == b"\x1f\x8b"
                if response.status_code != 200:
                    outcome.append(f"HTTP status {response.status_code}")
                else:
                    outcome.append("" if is_gzip else "the answer is not the file")
        except Exception as error:  # Every error in the thread must reach the caller.
            outcome.append(type(error).__name__)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(PREFLIGHT_SECONDS)
    return outcome[0] if outcome else f"no answer within {PREFLIGHT_SECONDS:g} s"
