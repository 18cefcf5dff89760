"""What a run's folder holds, read without trust: a file may be missing, torn or of another form."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dl.errors import UserError
from dl.predictions import Predictions, read_predictions
from dl.run import Run
from dl.selection import FINAL_SPLIT


@dataclasses.dataclass(frozen=True)
class Record:
    """The evidence of one run.

    Attributes:
      run: run.json.
      lines: of metrics.jsonl.
      result: result.json; empty if the run has not ended.
      predictions: of the final split, where they were kept.
      robustness: robustness.json; empty if it was not measured.
      missing: what is not there, in sentences.
    """

    run: Mapping[str, Any]
    lines: list[Mapping[str, Any]]
    result: Mapping[str, Any]
    predictions: Predictions | None
    robustness: Mapping[str, Any]
    missing: list[str]

    @property
    def final_split(self) -> str | None:
        """The split of the headline: test, else the last that was evaluated."""
        splits = list(mapping(self.result.get("metrics")))
        return FINAL_SPLIT if FINAL_SPLIT in splits else (splits[-1] if splits else None)

    @property
    def notice(self) -> str:
        """What the user must know about the data before trusting a figure."""
        return text(self.result.get("notice") or self.run.get("notice") or "")


def read_record(folder: Path) -> Record:
    """Reads a run's folder.

    Raises:
      UserError: it holds no run.
    """
    run = Run(folder, "", {})
    record = run.record if folder.is_dir() else None
    if not isinstance(record, dict):
        raise UserError(f"{folder} holds no run; give the folder that a run left, such as runs/NAME-TIME")
    missing = []
    result: Mapping[str, Any] = {}
    try:
        result = run.result or {}
        if not result:
            missing.append("The result: the run has not ended. Start it again with the same folder to go on.")
    except UserError as error:
        missing.append(f"The result: {error}.")
    lines = []
    try:
        run.verify(run.metrics_path)
        lines = _read_lines(run.metrics_path)
    except UserError as error:
        missing.append(f"The learning curves: {error}.")
    else:
        if not lines:
            missing.append("The learning curves: metrics.jsonl has no lines.")
        elif start := result.get("metrics_from_step"):
            missing.append(f"The learning curves up to step {start}: they were lost before the run went on.")
    predictions = None
    if run.predictions_path.exists():
        try:
            run.verify(run.predictions_path)
            predictions = read_predictions(run.predictions_path)
        except UserError as error:
            missing.append(f"What needs predictions: {error}.")
    elif run.predictions_path.name in mapping(result.get("digests")):
        missing.append(f"What needs predictions: {run.predictions_path} is missing.")
    elif result.get("members"):
        missing.append("Predictions: they are kept of runs with one seed only.")
    elif result:
        missing.append("Predictions: none were kept. They are of classifications, at the end of a run.")
    return Record(record, lines, result, predictions, _read_robustness(run, result, missing), missing)


def interval_of(result: Mapping[str, Any], split: str, name: str) -> tuple[float, float] | None:
    """Returns the bounds of a figure's 95 % interval, None where the result has none."""
    bounds = mapping(mapping(result.get("intervals")).get(split)).get(name)
    if not isinstance(bounds, list) or len(bounds) != 2:
        return None
    return number(bounds[0]), number(bounds[1])


def mapping(value: Any) -> Mapping[str, Any]:
    """Returns a mapping as it is, anything else as an empty one."""
    return value if isinstance(value, Mapping) else {}


def number(value: Any) -> float:
    """Returns a number as it is, anything else as NaN."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def text(value: Any) -> str:
    """Returns a string as it is, anything else as JSON; `none` of nothing."""
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _read_robustness(run: Run, result: Mapping[str, Any], missing: list[str]) -> Mapping[str, Any]:
    try:
        found = mapping(run.robustness)
    except UserError as error:
        missing.append(f"Robustness: {error}.")
        return {}
    if found and found.get("params_digest") != result.get("params_digest"):
        missing.append("Robustness: it was measured with other parameters; measure it again.")
        return {}
    return found


def _read_lines(path: Path) -> list[Mapping[str, Any]]:
    if not path.exists():
        return []
    lines: list[Mapping[str, Any]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            value = json.loads(line)
        except ValueError:  # torn: the run goes on, or was killed
            continue
        if isinstance(value, dict):
            lines.append(value)
    return lines
