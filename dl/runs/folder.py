"""The folder of a run, as it lies on disk: what was asked for, on what, and what came out.

`run.json` is written at the first start, `metrics.jsonl` grows, `result.json` appears at the end. All that
may be in the folder is said here in one place; `dl.runs.run` writes it.
"""

import contextlib
import re
from pathlib import Path
from typing import Any

from dl.errors import UserError
from dl.system.files import expand, file_digest, remove_leftovers
from dl.system.json_files import json_digest, read_json
from dl.system.locks import FolderLock

REPORT = "report.html"


class RunFolder:
    """A folder that holds a run, or none yet; it is only read.

    Attributes:
      folder: where.
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
    def name(self) -> str:
        """The name of the experiment; empty where there is no run."""
        return str((self.record or {}).get("experiment") or "")

    @property
    def options(self) -> dict[str, Any]:
        """The options of the experiment as run.json holds them."""
        options = (self.record or {}).get("options")
        return options if isinstance(options, dict) else {}

    @property
    def code(self) -> str:
        """The digest of the experiment's code when the run began; empty where there was none."""
        return str((self.record or {}).get("code") or "")

    @property
    def identity(self) -> dict[str, Any] | None:
        """What tells this run from others, None before it started; `id` is None in an older version's run."""
        if (record := self.record) is None:
            return None
        config = {name: record.get(name) for name in ("experiment", "code", "options", "dataset")}
        return {"id": record.get("id"), "config": json_digest(config)}

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
        raise UserError(f"{path} is damaged: it holds no JSON object; {hint}")
    return value


def read_progress(directory: Path) -> dict[str, Any] | None:
    """Returns the progress of the newest checkpoint without its state; None if there is none to be read."""
    steps = [path for path in directory.glob("*") if path.name.isdecimal()]
    try:
        extra = read_json(max(steps, key=lambda path: int(path.name)) / "extra" / "metadata")
        return extra["progress"] if isinstance(extra, dict) else None
    except (ValueError, KeyError, UserError):
        return None
