"""The folder of a run: what was asked for, on what, and what came out.

`run.json` is written at the first start, `metrics.jsonl` grows, `result.json` appears at the end. A file is
replaced in one move: at no time is there half of one.
"""

import contextlib
import fcntl
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import jax
from jax.sharding import Mesh

from dl.errors import UserError
from dl.log import finite
from dl.provenance import machine, software
from dl.sharding import format_mesh


class Run:
    """One run's folder.

    Attributes:
      folder: the run's folder; it exists once `open` returned.
      name: the experiment's module, such as `experiments.mnist_cnn`.
      options: every option of the experiment, resolved.
      code: a digest of the experiment's own code, as `code_digest` gives it.
      defaults: of the options, for the reader of run.json.

    With `resume_command` None, what goes on with the run is this process's command line, with the folder.
    """

    def __init__(
        self,
        folder: Path | None,
        name: str,
        options: Mapping[str, Any],
        code: str = "",
        resume_command: str | None = None,
        defaults: Mapping[str, Any] | None = None,
    ):
        self.name = name
        self._resume_command = resume_command
        self.code = code
        self.options = as_recorded(options)
        self.defaults = as_recorded(defaults or {})
        self.folder = folder or _new_folder(name)
        self._lock: TextIO | None = None

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
        return self.folder / "report.html"

    @property
    def record(self) -> dict[str, Any] | None:
        """What run.json says, once the run has started."""
        return _read(self.folder / "run.json")

    @property
    def result(self) -> dict[str, Any] | None:
        """The result, once the run has finished."""
        return _read(self.folder / "result.json")

    @property
    def robustness(self) -> dict[str, Any] | None:
        """What robustness.json says, once it was measured."""
        return _read(self.robustness_path)

    @property
    def resume_command(self) -> str:
        """The command line that goes on with this run."""
        if self._resume_command is not None:
            return self._resume_command
        return this_command(self.name, self.folder)

    def check(self, facts: Mapping[str, Any]) -> None:
        """Makes sure that the folder is new, empty or holds this very run; changes nothing.

        Args:
          facts: what run.json says beside the options; `dataset` and `initial` are compared.

        Raises:
          UserError: it holds something else.
        """
        with self._usable():
            record = self.record
            if record is None:
                if self.folder.exists() and any(self.folder.iterdir()):
                    raise UserError(
                        f"workdir={self.folder} is not empty and holds no run; choose another folder"
                    )
            elif differences := _differences(record, self._describe(facts)):
                raise UserError(
                    f"workdir={self.folder} holds another run ({'; '.join(differences)}); use its "
                    "options to resume it, or another --workdir"
                )

    def open(self, facts: Mapping[str, Any], mesh: Mesh) -> None:
        """Takes the folder for this process, and notes this start in run.json.

        Raises:
          UserError: another process writes to it, or it cannot be written.
        """
        with self._usable():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._acquire()
            record = self.record
            if record is None:
                asked = {**self._describe(facts), "defaults": self.defaults}
                record = {**asked, "created": _now(), **software(), "starts": []}
            start = {"time": _now(), "argv": sys.argv, "mesh": format_mesh(mesh.shape), **machine()}
            if jax.process_index() == 0:
                write_json(self.folder / "run.json", {**record, "starts": [*record["starts"], start]})

    def finish(self, result: Mapping[str, Any]) -> None:
        """Writes the result: from now on the run is finished."""
        if jax.process_index() == 0:
            write_json(self.folder / "result.json", finite(_plain(result)))

    def _describe(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        return {"experiment": self.name, "code": self.code, "options": self.options, **_plain(facts)}

    @contextlib.contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"workdir={self.folder} cannot be used ({error.strerror or error}); choose a folder "
                "that can be written"
            ) from error

    def _acquire(self) -> None:
        if jax.process_index():
            return
        self._lock = (self.folder / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise UserError(
                f"workdir={self.folder} is in use by another process; wait for it, or choose another"
            ) from None

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def this_command(module: str, folder: Path) -> str:
    """Returns this process's command line with `folder` as its --workdir, to be typed again.

    Args:
      module: what `python -m` runs.
      folder: in place of the one that was given, if one was.
    """
    words, told = [], iter(sys.argv[1:])
    for word in told:
        if word == "--workdir":
            next(told, None)
        elif not word.startswith("--workdir="):
            words.append(word)
    return shlex.join(["python", "-m", module, *words, "--workdir", str(folder)])


def as_recorded(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns options as run.json holds them: what JSON does not know, such as a path, is text there."""
    return json.loads(json.dumps(dict(options), default=str))


def write_json(path: Path, value: Any) -> None:
    """Writes JSON so that a reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _new_folder(name: str) -> Path:
    stem = f"{name.rpartition('.')[2]}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder, number = Path("runs") / stem, 1
    while folder.exists():
        number += 1
        folder = Path("runs") / f"{stem}-{number}"
    return folder


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not readable as JSON ({error}); choose another --workdir") from None


def _differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Says what differs in experiment, its code, options and data; devices and versions may differ."""
    pairs = [(key, there.get(key), here[key]) for key in ("experiment", "code")]
    if "initial" in here:  # else the run has not asked for it yet
        pairs.append(("initial", there.get("initial"), here["initial"]))
    for group in ("options", "dataset"):
        old, new = there.get(group) or {}, here.get(group) or {}
        pairs += [(key, old.get(key), new.get(key)) for key in {**old, **new}]
    return [
        f"{name}: {json.dumps(old)} there, {json.dumps(new)} here" for name, old, new in pairs if old != new
    ]


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
