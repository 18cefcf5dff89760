"""The folder of a study: it contains the runs and one record, and is locked as a whole.

Sweeps, benchmarks, learning curves and cross-validations keep their runs in such a folder. The record holds
the definition of the study, its results so far, and a digest of itself.
"""

import contextlib
import dataclasses
import fnmatch
import itertools
import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from dl.errors import UserError
from dl.runs.differences import as_recorded
from dl.system.bucket import refuse_url
from dl.system.json_files import read_json, write_json
from dl.system.locks import FolderLock

_REMOVE = "remove it, and the same command writes a new one from the runs that stand beside it"


@dataclasses.dataclass(frozen=True)
class StudyKind:
    """A kind of study, and the names of its files.

    Attributes:
      name: the name of the kind, such as sweep.
      record: the name of its record, such as sweep.json.
      parts: patterns of the names of its other files and folders. A folder without a record may contain them,
        because each run is checked by itself.
      former_record: the name of the record in older versions, which is read if there is no `record`.
      former_keys: the present key for each key of that record.
    """

    name: str
    record: str
    parts: tuple[str, ...]
    former_record: str | None = None
    former_keys: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Study:
    """An open study. No other process writes to its folder, or only the workers that share it.

    Attributes:
      kind: the kind of study.
      folder: the folder that contains all its runs.
    """

    def __init__(self, kind: StudyKind, folder: Path):
        self.kind = kind
        self.folder = folder

    @property
    def path(self) -> Path:
        """The path of the record."""
        return self.folder / self.kind.record

    def resume(
        self, header: Mapping[str, Any], older: Mapping[str, Any] | None = None
    ) -> dict[str, Any] | None:
        """Returns the record of this study so far; `None` if there is none.

        Args:
          header: the definition of the study, see `plain`. Keys that an older record lacks are not compared.
          older: the values that an older version recorded instead.

        Raises:
          UserError: the record is damaged, or belongs to another study.
        """
        there = read_record(self.path)
        if there is None and self.kind.former_record is not None:
            former = read_record(self.folder / self.kind.former_record) or {}
            there = {self.kind.former_keys.get(key, key): value for key, value in former.items()} or None
        if there is None:
            return None
        differences = [
            f"{key}: {json.dumps(old)} there, {json.dumps(new)} here"
            for name, here in header.items()
            for key, old, new in _pairs(name, there.get(name, here), here)
            if not is_same(old, new) and not (key in (older or {}) and is_same(old, (older or {})[key]))
        ]
        if differences:
            raise UserError(
                f"workdir={self.folder} holds another {self.kind.name} ({'; '.join(differences)}); use its "
                "options, or another folder"
            )
        return there

    def begin(self, header: Mapping[str, Any]) -> None:
        """Resumes this study, or starts its record with the header.

        Raises:
          UserError: the errors of `resume` and `write`.
        """
        if self.resume(header) is None:
            self.write(header)

    def write(self, record: Mapping[str, Any]) -> None:
        """Replaces the record.

        Raises:
          UserError: the folder cannot be written.
        """
        if jax.process_index() == 0:
            with usable(self.folder):
                write_json(self.path, record)


@contextlib.contextmanager
def open_study(kind: StudyKind, folder: Path | None, stem: str, is_shared: bool = False) -> Iterator[Study]:
    """A context that locks the folder of a study for this process, or for all that share it.

    Args:
      kind: the kind of study.
      folder: the folder. `None` means a new folder, runs/STEM-TIME.
      stem: the beginning of the name of a new folder.
      is_shared: whether other processes may open the study too, if all of them share it.

    Raises:
      UserError: the folder holds something else, another process uses it, or it cannot be written.
    """
    refuse_url(folder, f"a {kind.name}")
    with contextlib.ExitStack() as stack:
        with usable(folder or Path("runs")):
            folder = folder or _reserve(stem)
            folder.mkdir(parents=True, exist_ok=True)
            records = [name for name in (kind.record, kind.former_record) if name is not None]
            has_record = any((folder / name).exists() for name in records)
            if not has_record and (foreign := _foreign(kind, folder)):
                raise UserError(
                    f"workdir={folder} is not empty and does not hold a {kind.name} (but {foreign}); choose "
                    "another folder"
                )
            if jax.process_index() == 0:
                stack.callback(FolderLock(folder, is_shared).release)
        yield Study(kind, folder)


@contextlib.contextmanager
def usable(folder: Path) -> Iterator[None]:
    """A context that turns an OSError into a UserError about the folder."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"workdir={folder} cannot be used ({error.strerror or error}); choose a folder that can be "
            "written"
        ) from error


def read_record(path: Path) -> dict[str, Any] | None:
    """Returns a record without its digest; `None` if there is no record. Older records have no digest.

    Raises:
      UserError: the record is damaged.
    """
    record = read_json(path, _REMOVE)
    if record is None:
        return None
    if not isinstance(record, dict):
        raise damaged(path, "it is not a JSON object")
    return record


def damaged(path: Path, what: str) -> UserError:
    """Returns the error about a damaged record."""
    return UserError(f"{path} is damaged ({what}); {_REMOVE}")


def plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns options as a record holds them: as `as_recorded`, but numbers that are not finite become text.

    So a NaN in the record equals the NaN of the command that resumes the study.
    """

    def as_text(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: as_text(item) for name, item in value.items()}
        if isinstance(value, list):
            return [as_text(item) for item in value]
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value

    return as_text(as_recorded(options))


def is_same(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal; True does not equal 1, and NaN equals NaN."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _pairs(name: str, old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    """Returns the values of one entry of a header that are compared: each option separately."""
    if name != "options" or not (isinstance(old, dict) and isinstance(new, dict)):
        return [(name, old, new)]
    return [(key, old.get(key), new.get(key)) for key in {**old, **new}]


def _reserve(stem: str) -> Path:
    """Creates a new folder. Two studies that start in the same second get different folders."""
    name = f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    Path("runs").mkdir(exist_ok=True)
    for number in itertools.count(1):
        folder = Path("runs") / (name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise AssertionError("unreachable: the numbers do not end")


def _foreign(kind: StudyKind, folder: Path) -> str | None:
    """Returns the name of a file that a study of this kind does not write, if the folder has one."""
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    return next((n for n in names if not any(fnmatch.fnmatch(n, part) for part in kind.parts)), None)
