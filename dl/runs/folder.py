"""The folder of a run: what was asked for, on what, and what came out.

`run.json` is written at the first start, `metrics.jsonl` grows, `result.json` appears at the end. A file is
replaced in one move: at no time is there half of one. All that may be in the folder, and who may have it,
is said here in one place.
"""

import contextlib
import itertools
import json
import re
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
from dl.system.files import expand, file_digest, remove_leftovers, storage_error
from dl.runs.differences import as_recorded, differences
from dl.system.json_files import json_digest, read_json, write_json
from dl.system.locks import FolderLock
from dl.runs.log import finite
from dl.runs.provenance import code_digest, machine, software
from dl.sharding import format_mesh

__all__ = ["Run", "as_recorded", "code_digest", "read_json", "this_command", "write_json"]

REPORT = "report.html"


class Run:
    """One run's folder.

    Attributes:
      folder: the run's folder; it exists once `open` returned. One that the run names itself is made, and so
        reserved, when its name is first asked for.
      name: the experiment's module, such as `experiments.mnist_cnn`.
      options: every option of the experiment, resolved.
      code: a digest of the experiment's own code, as `code_digest` gives it.
      defaults: of the options, for the reader of run.json.
      legacy_code: the digest of the code as runs without an `id` recorded it.

    `resume_command` is what goes on with the run, or makes that from the folder; None: this process's command
    line, with the folder.
    """

    def __init__(
        self,
        folder: Path | None,
        name: str,
        options: Mapping[str, Any],
        code: str = "",
        resume_command: str | Callable[[Path], str] | None = None,
        defaults: Mapping[str, Any] | None = None,
        legacy_code: str = "",
    ):
        self.name = name
        self._resume_command = resume_command
        self.code = code
        self.legacy_code = legacy_code
        self.options = as_recorded(options)
        self.defaults = as_recorded(defaults or {})
        self._folder = None if folder is None else expand(folder)
        self._is_reserved = False
        self._lock: FolderLock | None = None

    @property
    def folder(self) -> Path:
        if self._folder is None:
            self._folder = self._reserve()
        return self._folder

    @property
    def is_begun(self) -> bool:
        """Whether the folder holds this run by now."""
        return self._folder is not None and self.record is not None

    @property
    def metrics_path(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def checkpoints_path(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def predictions_path(self) -> Path:
        return self.folder / "predictions.npz"

    @property
    def robustness_path(self) -> Path:
        return self.folder / "robustness.json"

    @property
    def report_path(self) -> Path:
        return self.folder / REPORT

    @property
    def record(self) -> dict[str, Any] | None:
        """What run.json says, once the run has started."""
        return _read(self.folder / "run.json", "restore it from a copy, or choose another --workdir")

    @property
    def result(self) -> dict[str, Any] | None:
        """The result, once the run has finished."""
        path = self.folder / "result.json"
        result = _read(path, "remove it and run the same command again, which makes it from the checkpoint")
        if result is None or "run_id" not in result or (record := self.record) is None:
            return result
        if result["run_id"] != record.get("id"):
            raise UserError(f"{path} belongs to another run; remove it, or restore that of this run")
        return result

    @property
    def robustness(self) -> dict[str, Any] | None:
        """What robustness.json says, once it was measured."""
        return _read(self.robustness_path, "remove it, or measure it again")

    @property
    def identity(self) -> dict[str, Any] | None:
        """What tells this run from others, None before it started; `id` is None in an older version's run."""
        if (record := self.record) is None:
            return None
        config = {name: record.get(name) for name in ("experiment", "code", "options", "dataset")}
        return {"id": record.get("id"), "config": json_digest(config)}

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
                    raise UserError(
                        f"workdir={self.folder} is not empty and holds no run; choose another folder"
                    )
            elif found := differences(record, self._describe(facts), self.legacy_code):
                raise UserError(
                    f"workdir={self.folder} holds another run ({'; '.join(found)}); use its "
                    "options to resume it, or another --workdir"
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
                asked = {**self._describe(facts), "defaults": self.defaults}
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

    def verify(self, path: Path) -> None:
        """Checks a file of this run, metrics.jsonl or predictions.npz, against the digest in the result.

        Of a run that has not finished, metrics.jsonl is checked as far as the newest checkpoint knows it.

        Raises:
          UserError: it is damaged or missing.
        """
        size = None
        if (result := self.result) is not None:
            expected = (result.get("digests") or {}).get(path.name)
        elif path == self.metrics_path:
            progress = read_progress(self.checkpoints_path) or {}
            expected, size = progress.get("log_digest"), progress.get("log_size")
        else:
            expected = None
        if not expected:
            return  # of an older version, or not to be expected
        try:
            digest = file_digest(path, size)
        except OSError as error:
            raise UserError(f"{path} is missing or cannot be read ({error.strerror})") from None
        if digest != expected:
            raise UserError(f"{path} is damaged: it does not match the digest that the run recorded")

    def damages(self) -> list[str]:
        """Returns what is wrong with the files that are read for reports and comparisons only."""
        found = []
        for path in (self.metrics_path, self.predictions_path):
            try:
                self.verify(path)
            except UserError as error:
                found.append(str(error))
        return found

    def tidy(self) -> None:
        """Removes what killed processes left in the folder of a finished run, where it can be written."""
        with contextlib.suppress(OSError, UserError):
            lock = FolderLock(self.folder)
            self._remove_leftovers()
            lock.release()

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
        stem = f"{self.name.rpartition('.')[2]}-{time.strftime('%Y%m%d-%H%M%S')}"
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
        return {"experiment": self.name, "code": self.code, "options": self.options, **_plain(facts)}

    def _remove_leftovers(self) -> None:
        remove_leftovers(self.folder)
        for path in self.folder.iterdir():
            if re.fullmatch(
                r"\.(\w+\.json|predictions\.npz|report\.html)\.\d+", path.name
            ):  # of older versions
                path.unlink()

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


def _read(path: Path, hint: str) -> dict[str, Any] | None:
    value = read_json(path, hint)
    if value is not None and not isinstance(value, dict):
        raise UserError(f"{path} is damaged: it holds no JSON object; {hint}")
    return value


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def read_progress(directory: Path) -> dict[str, Any] | None:
    """Returns the progress of the newest checkpoint without its state; None if there is none to be read."""
    steps = [path for path in directory.glob("*") if path.name.isdecimal()]
    try:
        extra = read_json(max(steps, key=lambda path: int(path.name)) / "extra" / "metadata")
        return extra["progress"] if isinstance(extra, dict) else None
    except (ValueError, KeyError, UserError):
        return None
