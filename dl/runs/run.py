"""A run that is being made: its folder, which this process alone may write to, and its definition.

A file is replaced in one move: at no time is there half of one.
"""

import contextlib
import itertools
import json
import shlex
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from dl.errors import StorageError, UserError
from dl.runs.definition import RUN_DEFAULTS, Definition
from dl.runs.differences import as_recorded, differences
from dl.runs.folder import RunFolder
from dl.runs.log import MetricsLog, finite
from dl.runs.predictions import Kept
from dl.runs.provenance import machine, software
from dl.sharding import format_mesh
from dl.system.files import expand, file_digest, storage_error
from dl.system.json_files import write_json
from dl.system.locks import FolderLock


class Run(RunFolder):
    """A run and the folder that it writes.

    Attributes:
      folder: it exists once `open` returned. One that the run names itself is made, and so reserved, when its
        name is first asked for.
      definition: of the experiment.

    `resume_command` is what goes on with the run, or makes that from the folder; None: this process's command
    line, with the folder.
    """

    def __init__(
        self,
        folder: Path | str | None,
        definition: Definition,
        resume_command: str | Callable[[Path], str] | None = None,
    ):
        self.definition = definition
        self._resume_command = resume_command
        self._folder = None if folder is None else expand(Path(folder))
        self._is_reserved = False
        self._lock: FolderLock | None = None

    @property
    def name(self) -> str:
        """The name of the experiment."""
        assert self.definition.name is not None
        return self.definition.name

    @property
    def folder(self) -> Path:
        if self._folder is None:
            self._folder = self._reserve()
        return self._folder

    @property
    def where(self) -> str:
        """What a person is told of the place."""
        return str(self.folder)

    @property
    def is_begun(self) -> bool:
        """Whether the folder holds this run by now."""
        return self._folder is not None and self.record is not None

    @property
    def resume_command(self) -> str:
        """The command line that goes on with this run."""
        if callable(self._resume_command):
            return self._resume_command(self.folder)
        if self._resume_command is not None:
            return self._resume_command
        return this_command(self.name, self.folder)

    def check(self, facts: Mapping[str, Any]) -> None:
        """Makes sure that the folder is new, empty or holds this very run; changes nothing.

        Args:
          facts: what run.json says beside the options; `dataset`, `numerics`, `settings`, `traced`
            and `initial` are compared.

        Raises:
          UserError: it holds something else.
        """
        if self._folder is None:
            return  # it will be new
        with self._usable():
            record = self.record
            if record is None:
                if self.folder.exists() and any(
                    not path.name.startswith(".") for path in self.folder.iterdir()
                ):
                    raise UserError(f"{self.folder} is not empty and holds no run; choose another folder")
            elif found := differences(record, self._describe(facts), self.definition.legacy_code):
                raise UserError(
                    f"{self.folder} holds another run ({'; '.join(found)}); to resume that run, give its "
                    "options; to start a new run, choose another folder"
                )

    def open(self, facts: Mapping[str, Any], mesh: Mesh) -> None:
        """Takes the folder for this process, and notes this start in run.json.

        Raises:
          UserError: another process writes to it, it holds another run, or it cannot be written.
        """
        with self._usable():
            self.folder.mkdir(parents=True, exist_ok=True)
            if jax.process_index():
                return
            self._lock = FolderLock(self.folder)
            self._is_reserved = False
        try:
            self.check(facts)  # again: another process may have begun a run meanwhile
            self._remove_leftovers()
            record = self.record
            if record is None:
                defaults = as_recorded({**RUN_DEFAULTS, **self.definition.defaults})
                asked = {**self._describe(facts), "defaults": defaults}
                record = {"id": uuid.uuid4().hex, **asked, "created": _now(), **software(), "starts": []}
            start = {"time": _now(), "argv": sys.argv, "mesh": format_mesh(mesh.shape), **machine()}
            starts = [*record.get("starts", []), start]
            write_json(self.folder / "run.json", {**record, "starts": starts})
        except BaseException:
            self.close()
            raise

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """A context that needs the folder where it was opened.

        Raises:
          StorageError: it was removed, moved or replaced, before or within.
        """
        self._check_in_place()
        try:
            yield
        except Exception:
            self._check_in_place()  # which explains whatever the writing of its files has raised
            raise

    def _check_in_place(self) -> None:
        if self._lock is not None and not self._lock.is_in_place():
            raise StorageError(
                f"{self.folder} was removed or moved while the run went on; move it back and run the same "
                "command again to go on from its last checkpoint"
            )

    def open_log(self, size: int, step: int, digest: str) -> MetricsLog:
        """Returns the log of the metrics, as far as a checkpoint knows it: see `MetricsLog`."""
        return MetricsLog(self.metrics_path, size, step, digest)

    def keep_predictions(self, predictions: Kept) -> None:
        """Writes what the run's end predicts."""
        predictions.save(self.predictions_path)

    def finish(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Writes the result, and returns it: from now on the run is finished."""
        result = dict(finite(_plain(result)))
        if jax.process_index():
            return result
        with self.in_place():
            files = [path for path in (self.metrics_path, self.predictions_path) if path.exists()]
            digests = {path.name: file_digest(path) for path in files}
            run_id = (self.record or {}).get("id")
            return write_json(self.folder / "result.json", {**result, "run_id": run_id, "digests": digests})

    def close(self) -> None:
        """Lets other processes have the folder; one that was reserved and not used is removed."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        if self._is_reserved:
            with contextlib.suppress(OSError):
                self.folder.rmdir()
                self._folder, self._is_reserved = None, False

    def _reserve(self) -> Path:
        if jax.process_count() > 1:
            raise UserError("several processes need one folder; give all of them the same --workdir")
        stem = f"{self.definition.stem}-{time.strftime('%Y%m%d-%H%M%S')}"
        for number in itertools.count(1):
            folder = Path("runs") / (stem if number == 1 else f"{stem}-{number}")
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                if not folder.parent.is_dir():
                    raise UserError(f"{folder.parent} is not a folder; give another --workdir") from None
            except OSError as error:
                raise storage_error(folder, error, "choose another --workdir") from error
            else:
                self._is_reserved = True
                return folder
        raise AssertionError

    def _describe(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        definition = self.definition
        asked = {"experiment": self.name, "code": definition.code, "options": definition.recorded}
        return {**asked, **_plain(facts)}

    @contextlib.contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            kind = type(storage_error(self.folder, error))
            raise kind(
                f"workdir={self.folder} cannot be used ({reason}); choose a folder that can be written"
            ) from error


def this_command(program: str, folder: Path, argv: Sequence[str] | None = None) -> str:
    """Returns a command line with `folder` as its --workdir, to be typed again.

    Args:
      program: a module that `python -m` runs, or the path of a Python file.
      folder: in place of the one that was given, if one was.
      argv: the words after the program; None: those of this process.
    """
    words = without_workdir(sys.argv[1:] if argv is None else argv)
    start = ["python", program] if program.endswith(".py") else ["python", "-m", program]
    return shlex.join([*start, *words, "--workdir", str(folder)])


def without_workdir(argv: Sequence[str]) -> list[str]:
    """Returns the words of a command line without --workdir and its value."""
    words, told = [], iter(argv)
    for word in told:
        if word == "--workdir":
            next(told, None)
        elif not word.startswith("--workdir="):
            words.append(word)
    return words


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
