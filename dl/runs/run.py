"""A run that is being trained: its definition, and its folder, which only this process writes to.

Each file is replaced in one step, so a reader never sees an incomplete file.
"""

import contextlib
import hashlib
import itertools
import json
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from dl.errors import StorageError, UserError
from dl.runs.command_line import this_command
from dl.runs.definition import RUN_DEFAULTS, Definition
from dl.runs.differences import as_recorded, differences, in_one_line
from dl.runs.folder import INITIAL, RunFolder
from dl.runs.log import MetricsLog, finite
from dl.runs.predictions import Kept
from dl.runs.provenance import machine, software
from dl.runs.shared import from_first_process, wait_for_all
from dl.sharding import format_mesh
from dl.system.bucket_lock import BucketLock
from dl.system.files import expand, file_digest, replace_text, storage_error
from dl.system.json_files import write_json
from dl.system.locks import FolderLock


class Run(RunFolder):
    """A run and the folder that it writes.

    Attributes:
      folder: the path of the folder. It exists after `open`. If the run chooses the name, the folder is
        created, and so reserved, at the first access.
      definition: the definition of the experiment.

    `resume_command` is the command that resumes the run, or a function that returns it for a folder. `None`
    means the command line of this process with the folder.
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
        self._lock: FolderLock | BucketLock | None = None

    @property
    def name(self) -> str:
        """The name of the experiment."""
        assert self.definition.name is not None
        return self.definition.name

    @property
    def folder(self) -> Path:
        if self._folder is None:
            is_first = jax.process_index() == 0
            self._folder = Path(from_first_process(str(self._reserve()) if is_first else ""))
        return self._folder

    @property
    def where(self) -> str:
        """The path of the folder, as text for the user."""
        return str(self.folder)

    @property
    def is_begun(self) -> bool:
        """Whether the folder holds this run already."""
        return self._folder is not None and self.record is not None

    @property
    def resume_command(self) -> str:
        """The command line that resumes this run."""
        if callable(self._resume_command):
            return self._resume_command(Path(self.where))
        if self._resume_command is not None:
            return self._resume_command
        return this_command(self.name, Path(self.where))

    def check(self, facts: Mapping[str, Any]) -> None:
        """Checks that the folder is new, is empty, or holds this run. Nothing is changed.

        Args:
          facts: what run.json records beside the options; `dataset`, `numerics`, `settings`, `traced`
            and `initial` are compared.

        Raises:
          UserError: the folder holds another run or other files.
        """
        if self._folder is None:
            return  # it will be new
        with self._usable():
            record = self.record
            if record is None:
                if self.folder.exists() and any(
                    not path.name.startswith(".") and path.name != INITIAL for path in self.folder.iterdir()
                ):
                    raise UserError(
                        f"{self.where} is not empty and does not hold a run; choose another folder"
                    )
            elif found := differences(
                record, self._describe(facts), self.definition.legacy_code, is_strict=True
            ):
                raise UserError(
                    f"{self.where} holds another run ({in_one_line(found)}); to resume that run, give its "
                    "options; to start a new run, choose another folder"
                )

    def open(self, facts: Mapping[str, Any], mesh: Mesh, files: Mapping[str, str] | None = None) -> None:
        """Locks the folder for this process, and records this start in run.json.

        Args:
          facts: what run.json records beside the options.
          mesh: the devices.
          files: other files that the folder must hold from the start: their texts, by name.

        Raises:
          UserError: another process writes to it, it holds another run, or it cannot be written.
        """
        with self._usable():
            self.folder.mkdir(parents=True, exist_ok=True)
            if jax.process_index():
                wait_for_all("run.json")
                self._pull()
                return
            self._lock = self._take_lock()
            self._is_reserved = False
        try:
            self._pull()
            self.check(facts)  # again, because another process may have started a run in the meantime
            self._remove_leftovers()
            missing = self._missing(files or {})
            record = self.record
            if record is None:
                defaults = as_recorded({**RUN_DEFAULTS, **self.definition.defaults})
                asked = {**self._describe(facts), "defaults": defaults}
                record = {"id": uuid.uuid4().hex, **asked, "created": _now(), **software(), "starts": []}
            start = {"time": _now(), "argv": sys.argv, "mesh": format_mesh(mesh.shape), **machine()}
            starts = [*record.get("starts", []), start]
            write_json(self.folder / "run.json", {**record, "starts": starts})
            with self._usable():
                for name, text in missing.items():
                    replace_text(self.folder / name, text)
            self._push()
        except BaseException:
            self.close()
            raise
        wait_for_all("run.json")

    def _missing(self, files: Mapping[str, str]) -> dict[str, str]:
        """Returns the files that are not in the folder yet. Raises UserError if one has another content."""
        missing = {}
        for name, text in files.items():
            path = self.folder / name
            if not path.exists():
                missing[name] = text
            elif file_digest(path) != hashlib.sha256(text.encode()).hexdigest():
                raise UserError(
                    f"{path} differs from that of the present data; to resume the run, restore it or the "
                    "data; to start a new run, choose another folder"
                )
        return missing

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """A context that needs the folder at the path where it was opened.

        Raises:
          StorageError: the folder was removed, moved or replaced, before or inside the context.
        """
        self._check_in_place()
        self._push()
        try:
            yield
        except Exception:
            self._check_in_place()  # which raises an error that explains the failure
            raise

    def _check_in_place(self) -> None:
        if self._lock is not None and not self._lock.is_in_place():
            raise StorageError(
                f"{self.folder} was removed or moved during the run; move it back, then run the same "
                "command again to resume from its last checkpoint"
            )

    def open_log(self, size: int, step: int, digest: str) -> MetricsLog:
        """Returns the log of the metrics up to a checkpoint, see `MetricsLog`."""
        return MetricsLog(self.metrics_path, size, step, digest)

    def keep_predictions(self, predictions: Kept) -> None:
        """Writes the predictions of the final variables."""
        predictions.save(self.predictions_path)

    def keep_samples(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Writes the texts that the model wrote so far.

        Raises:
          StorageError: the file cannot be written.
        """
        try:
            replace_text(self.samples_path, "".join(json.dumps(line) + "\n" for line in lines))
        except OSError as error:
            raise storage_error(self.samples_path, error) from error

    def finish(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Writes the result, which marks the run as finished, and returns it."""
        result = dict(finite(_plain(result)))
        if jax.process_index():
            return result
        with self.in_place():
            files = [path for path in (self.metrics_path, self.predictions_path) if path.exists()]
            digests = {path.name: file_digest(path) for path in files}
            run_id = (self.record or {}).get("id")
            result = {**result, "run_id": run_id, "digests": digests}
            written = write_json(self.folder / "result.json", result)
            self._push()
            return written

    def close(self) -> None:
        """Unlocks the folder for other processes. A reserved folder that was not used is removed."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        if self._is_reserved:
            with contextlib.suppress(OSError):
                self.folder.rmdir()
                self._folder, self._is_reserved = None, False

    def _take_lock(self) -> "FolderLock | BucketLock":
        return FolderLock(self.folder)

    def _pull(self) -> None:
        """Updates the folder if it is a copy of one in a bucket."""

    def _push(self) -> None:
        """Updates the folder in a bucket that the folder is a copy of."""

    def _reserve(self) -> Path:
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
                f"workdir={self.where} cannot be used ({reason}); choose a folder that can be written"
            ) from error


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
