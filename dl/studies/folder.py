"""The folder of a study of several runs: reserved when its name is chosen, locked as a whole, one record.

Sweeps, benchmarks, learning curves and cross-validations keep their runs in such a folder. The record says
which study it is and what it has found so far; it carries a digest of itself.
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
from dl.system.json_files import read_json, write_json
from dl.system.locks import FolderLock

_REMOVE = "remove it, and the same command writes a new one from the runs that stand beside it"


@dataclasses.dataclass(frozen=True)
class StudyKind:
    """What a study is, and what it writes.

    Attributes:
      name: such as sweep.
      record: the name of its record, such as sweep.json.
      parts: patterns of the names of what it writes beside the record. Such files and folders do not make a
        folder without a record foreign: each run says for itself what it is.
      former_record: the name of the record in older versions, which is read where there is no other.
      former_keys: from the keys of that record to those of today.
    """

    name: str
    record: str
    parts: tuple[str, ...]
    former_record: str | None = None
    former_keys: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Study:
    """An open study: nobody else writes to its folder.

    Attributes:
      kind: of study.
      folder: of all its runs.
    """

    def __init__(self, kind: StudyKind, folder: Path):
        self.kind = kind
        self.folder = folder

    @property
    def path(self) -> Path:
        """Where the record is."""
        return self.folder / self.kind.record

    def resume(
        self, header: Mapping[str, Any], older: Mapping[str, Any] | None = None
    ) -> dict[str, Any] | None:
        """Returns the record of this very study, so far; None where there is none yet.

        Args:
          header: what makes it this study, as `plain` gives it. What an older record lacks is not compared.
          older: what an older version would have recorded instead.

        Raises:
          UserError: the record is damaged, or of another study.
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
        """Resumes this very study, or begins its record with the header.

        Raises:
          UserError: as `resume` and `write`.
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
def open_study(kind: StudyKind, folder: Path | None, stem: str) -> Iterator[Study]:
    """Takes the folder of a study for this process, until the context ends.

    Args:
      kind: of study.
      folder: where; None: a new one, runs/STEM-TIME.
      stem: of the name of a new folder.

    Raises:
      UserError: the folder holds something else, another process uses it, or it cannot be written.
    """
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
                stack.callback(FolderLock(folder).release)
        yield Study(kind, folder)


@contextlib.contextmanager
def usable(folder: Path) -> Iterator[None]:
    """A context in which an error of the file system is one line about the folder."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"workdir={folder} cannot be used ({error.strerror or error}); choose a folder that can be "
            "written"
        ) from error


def read_record(path: Path) -> dict[str, Any] | None:
    """Returns a record without its digest; None where there is none. An older one has no digest.

    Raises:
      UserError: it is damaged.
    """
    record = read_json(path, _REMOVE)
    if record is None:
        return None
    if not isinstance(record, dict):
        raise damaged(path, "it is not a JSON object")
    return record


def damaged(path: Path, what: str) -> UserError:
    """Returns the error of a record that does not hold what it should."""
    return UserError(f"{path} is damaged ({what}); {_REMOVE}")


def plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns options as a record holds them: as `as_recorded`, and a number that is not finite is text.

    So a NaN in the record equals the NaN of the command that goes on.
    """

    def as_text(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: as_text(item) for name, item in value.items()}
        if isinstance(value, list):
            return [as_text(item) for item in value]
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value

    return as_text(as_recorded(options))


def is_same(one: Any, other: Any) -> bool:
    """Whether two values are the same JSON; True is not 1, and NaN is NaN."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _pairs(name: str, old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    """Returns what is compared of one entry of a header: of options each by itself."""
    if name != "options" or not (isinstance(old, dict) and isinstance(new, dict)):
        return [(name, old, new)]
    return [(key, old.get(key), new.get(key)) for key in {**old, **new}]


def _reserve(stem: str) -> Path:
    """Makes a folder that was not there, so that of two that begin in one second each has its own."""
    name = f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    Path("runs").mkdir(exist_ok=True)
    for number in itertools.count(1):
        folder = Path("runs") / (name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise AssertionError("unreachable: the numbers do not end")


def _foreign(kind: StudyKind, folder: Path) -> str | None:
    """Returns the name of something in the folder that no study of this kind has written, if there is one."""
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    return next((n for n in names if not any(fnmatch.fnmatch(n, part) for part in kind.parts)), None)
