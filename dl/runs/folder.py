"""The folder of a run on disk: its definition, metrics, checkpoints and result.

`run.json` is written at the first start, `metrics.jsonl` grows, and `result.json` is written at the end. This
module names the files in the folder, and `dl.runs.run` writes them. A run on texts has `tokenizer.json` too,
see `dl.data.recorded`. A compressed run has `initial.safetensors`, which is there before the first start.
"""

import contextlib
import functools
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dl.errors import UserError
from dl.runs.log import readable_lines
from dl.system.files import expand, file_digest, remove_leftovers, replace_file
from dl.system.json_files import json_digest, read_json
from dl.system.locks import FolderLock
from dl.types import Variables

REPORT = "report.html"
INITIAL = "initial.safetensors"  # the variables that a compressed run starts from


class RunFolder:
    """The folder of a run, which may not have started. It is only read.

    Attributes:
      folder: the path of the folder.
    """

    def __init__(self, folder: Path | str):
        self._folder: Path | None = expand(Path(folder))

    @property
    def folder(self) -> Path:
        assert self._folder is not None
        return self._folder

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
    def initial_path(self) -> Path:
        return self.folder / INITIAL

    def initial_variables(self, shapes: Variables) -> Variables:
        """Returns the variables that a compressed run starts from, a warm start; see `dl.warm_start`.

        Raises:
          UserError: the file is missing or damaged, or it is of another model.
        """
        from dl.models.weights.files import load_safetensors

        if not self.initial_path.exists():
            raise UserError(f"{self.initial_path} is missing, which the run starts from; restore it")
        return load_safetensors(self.initial_path)

    @property
    def samples_path(self) -> Path:
        return self.folder / "samples.jsonl"

    @property
    def samples(self) -> Sequence[Mapping[str, Any]]:
        """The lines of samples.jsonl: `step`, `prompt` and `text` of each text that the model wrote."""
        return readable_lines(self.samples_path)

    @property
    def robustness_path(self) -> Path:
        return self.folder / "robustness.json"

    @property
    def report_path(self) -> Path:
        return self.folder / REPORT

    @property
    def record(self) -> dict[str, Any] | None:
        """The content of run.json; `None` before the run has started."""
        return _read(self.folder / "run.json", "restore it from a copy, or choose another --workdir")

    @property
    def result(self) -> dict[str, Any] | None:
        """The content of result.json; `None` before the run has finished."""
        path = self.folder / "result.json"
        result = _read(path, "remove it and run the same command again, which makes it from the checkpoint")
        if result is None or "run_id" not in result or (record := self.record) is None:
            return result
        if result["run_id"] != record.get("id"):
            raise UserError(f"{path} belongs to another run; remove it, or restore the file of this run")
        return result

    @property
    def robustness(self) -> dict[str, Any] | None:
        """The content of robustness.json; `None` if robustness was not measured."""
        return _read(self.robustness_path, "remove it, or measure it again")

    @property
    def name(self) -> str:
        """The name of the experiment; empty if there is no run."""
        return str((self.record or {}).get("experiment") or "")

    @property
    def options(self) -> dict[str, Any]:
        """The options of the experiment as run.json records them."""
        options = (self.record or {}).get("options")
        return options if isinstance(options, dict) else {}

    @property
    def code(self) -> str:
        """The digest of the code of the experiment at the first start; empty if it is not recorded."""
        return str((self.record or {}).get("code") or "")

    @property
    def identity(self) -> dict[str, Any] | None:
        """The identity of the run; `None` before it has started. In runs of older versions `id` is `None`."""
        if (record := self.record) is None:
            return None
        config = {name: record.get(name) for name in ("experiment", "code", "options", "dataset")}
        return {"id": record.get("id"), "config": json_digest(config)}

    def finished_result(self) -> dict[str, Any]:
        """Returns the content of result.json.

        Raises:
          UserError: the run has not finished.
        """
        if (result := self.result) is None:
            raise UserError(f"the run in {self.folder} has not finished; run its command again first")
        return result

    def verify(self, path: Path) -> None:
        """Checks metrics.jsonl or predictions.npz against its digest in result.json.

        If the run has not finished, metrics.jsonl is checked up to the newest checkpoint.

        Raises:
          UserError: the file is damaged or missing.
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
            return  # a run of an older version, or the file is not expected
        try:
            digest = file_digest(path, size)
        except OSError as error:
            raise UserError(f"{path} is missing or cannot be read ({error.strerror})") from None
        if digest != expected:
            raise UserError(f"{path} is damaged: it does not match the digest that the run recorded")

    def damages(self) -> list[str]:
        """Returns text about each damaged file among those that only reports and comparisons read."""
        found = []
        for path in (self.metrics_path, self.predictions_path):
            try:
                self.verify(path)
            except UserError as error:
                found.append(str(error))
        return found

    def tidy(self) -> None:
        """Removes temporary files of killed processes in the folder of a finished run, if it is writable."""
        with contextlib.suppress(OSError, UserError):
            lock = FolderLock(self.folder)
            self._remove_leftovers()
            lock.release()

    def seize(self) -> None:
        """Takes the run from a process that may be alive on another machine, and may not know it yet.

        The lock is removed, which `Run.in_place` notices, so that process saves and finishes nothing more.
        The log becomes another file, so that the lines of that process are not in it.

        Raises:
          OSError: the folder cannot be written.
        """
        if not self.folder.exists():
            return
        (self.folder / ".lock").unlink(missing_ok=True)
        if self.metrics_path.exists():
            with self.metrics_path.open("rb") as old:
                replace_file(self.metrics_path, functools.partial(shutil.copyfileobj, old))

    def _remove_leftovers(self) -> None:
        remove_leftovers(self.folder)
        for path in self.folder.iterdir():
            if re.fullmatch(
                r"\.(\w+\.json|predictions\.npz|report\.html)\.\d+", path.name
            ):  # of older versions
                path.unlink()


def _read(path: Path, hint: str) -> dict[str, Any] | None:
    value = read_json(path, hint)
    if value is not None and not isinstance(value, dict):
        raise UserError(f"{path} is damaged: it does not hold a JSON object; {hint}")
    return value


def read_progress(directory: Path) -> dict[str, Any] | None:
    """Returns the progress of the newest checkpoint without its state; `None` if none is readable."""
    steps = [path for path in directory.glob("*") if path.name.isdecimal()]
    try:
        extra = read_json(max(steps, key=lambda path: int(path.name)) / "extra" / "metadata")
        return extra["progress"] if isinstance(extra, dict) else None
    except (ValueError, KeyError, UserError):
        return None
