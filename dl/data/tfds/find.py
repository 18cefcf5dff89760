"""Search for a data set by name: a prepared set, a set to prepare, or the embedded digits instead."""

import difflib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from dl.data.tfds import folders
from dl.data.tfds.folders import Request
from dl.errors import UserError
from dl.system.bucket import BucketFolder, url_of

PREPARABLE = {
    "mnist": "3.0.1",
    "fashion_mnist": "3.0.1",
    "kmnist": "3.0.1",
    "cifar10": "3.0.2",
    "cifar100": "3.0.2",
    "digits": "1.0.0",
}
_FALLBACK = "digits"


def names_path(wanted: str, data_dir: Path | None = None) -> bool:
    """Returns whether `wanted` is a path. A folder with the name of a set must be written as ./NAME."""
    if folders.is_path(wanted):
        return True
    request = folders.parse_request(wanted)
    if (request.name in PREPARABLE and not request.config) or not os.path.exists(wanted):
        return False
    return find(request, folders.data_folder(data_dir)) is None


def find_or_prepare(
    wanted: Sequence[str], may_fall_back: bool, data_dir: Path | None = None
) -> tuple[Path, Path, str | None]:
    """Returns the data folder, the folder of the set in it, and a notice if the fallback is used."""
    root = folders.data_folder(data_dir)
    for name in wanted:
        if found := find(folders.parse_request(name), root):
            return *found, None
    request = folders.parse_request(wanted[0])
    version = PREPARABLE.get(request.name)
    if version is None or request.config or request.version not in (None, version):
        if not may_fall_back:
            raise not_found(request, root)
        found = find(Request(_FALLBACK), root) or _prepare(_FALLBACK, root)
        return *found, _notice(request, f"it is not prepared in {root}", str(not_found(request, root)))
    from dl.data.tfds import download as raw_files

    try:
        return *_prepare(request.name, root), None
    except raw_files.UnreachableError as error:
        if not may_fall_back:
            raise
        found = find(Request(_FALLBACK), root) or _prepare(_FALLBACK, root)
        return *found, _notice(request, error.reason, error.advice)


def _prepare(name: str, root: Path) -> tuple[Path, Path]:
    from dl.data.tfds import builders

    return builders.prepare(name, _in_cache() if url_of(root) else root)


def find(request: Request, root: Path) -> tuple[Path, Path] | None:
    """Returns the data folder and the folder of a prepared set, or `None` if it is not prepared.

    Those of a set in a bucket are the folders of its copy.
    """
    roots = [root]
    if not folders.is_writable(root):  # Then `builders.prepare` has used the user's cache.
        roots.append(_in_cache())
    for candidate in roots:
        if url := url_of(candidate):
            if found := _find_in_bucket(request, candidate, url):
                return found
        elif folder := folders.locate(request, candidate):
            return candidate, folder
    return None


def _find_in_bucket(request: Request, root: Path, url: str) -> tuple[Path, Path] | None:
    from dl.data.tfds.bucket_copy import bucket_copies, copy_set

    with BucketFolder(url).reaching():
        folder = folders.locate(request, root)
    if folder is None:
        return None
    copies = bucket_copies(url)
    return copies, copy_set(str(folder), copies / folder.relative_to(root))


def _in_cache() -> Path:
    return folders.user_cache() / "tensorflow_datasets"


def _notice(request: Request, reason: str, advice: str) -> str:
    return (
        f"Embedded digits, not {request}.\n"  # This line is shown beside every result.
        f"Wanted {request}, but {reason}.\n"
        "The embedded digits are used INSTEAD: 1,797 real 8x8 images that scikit-learn ships.\n"
        f"So the accuracy is not {request} accuracy.\n"
        f"To get {request}: {advice}."
    )


def not_found(
    request: Request, root: Path, others: Iterable[str] = PREPARABLE, what: str = "folder of images"
) -> UserError:
    """Returns the error for a set that is not prepared.

    Args:
      request: the set.
      root: the data folder.
      others: names that can be asked for beside the prepared sets.
      what: what a path could name, for a request that may be one.
    """
    missing = f"{request} is not prepared in {root}"
    if request.config:
        missing += f", and there is no {what} at that path"
    folder = root / request.name / (request.config or "")
    if versions := folders.versions(folder):
        return UserError(f"{missing}: choose one of its versions there, {', '.join(versions)}")
    if request.name in PREPARABLE and request.name in others:
        can = PREPARABLE[request.name]
        return UserError(f"{missing}: only {request.name}:{can} can be prepared here; ask for that")
    known = sorted({*folders.prepared_names(root), *others})
    near = difflib.get_close_matches(request.name.lower(), known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"the known data sets are {', '.join(known)}"
    if _is_in_tfds(request.name):
        hint = (
            f"preparing it needs TensorFlow: run `tfds build {request.name} "
            "--file_format=array_record` once where TensorFlow is installed, and set --data-dir "
            f"(TFDS_DATA_DIR) to the result" + (f"; or {hint}" if near else "")
        )
    return UserError(f"{missing}: {hint}")


def _is_in_tfds(name: str) -> bool:
    import tensorflow_datasets as tfds

    try:
        tfds.builder_cls(name)
    except Exception:  # It is not found, or its module needs a package that is not installed.
        return False
    return True
