"""Reads the folder of a run. A file may be missing, incomplete or have another form."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dl.errors import UserError
from dl.runs.folder import RunFolder
from dl.runs.log import readable_lines
from dl.runs.predictions import ClassificationOutcomes, Kept, Predictions, read_predictions
from dl.stopping import FINAL_SPLIT
from dl.task import FRACTION

MAX_TEXT = 2_000  # largest number of characters of a value


@dataclasses.dataclass(frozen=True)
class Record:
    """The files of one run.

    Attributes:
      run: the content of run.json.
      lines: the lines of metrics.jsonl.
      result: the content of result.json; empty if the run has not ended.
      predictions: the predictions for the final split. `None` if they were not kept.
      robustness: the content of robustness.json; empty if it was not measured.
      missing: sentences about what is missing.
      samples: the lines of samples.jsonl, the texts that the model wrote during training.
    """

    run: Mapping[str, Any]
    lines: Sequence[Mapping[str, Any]]
    result: Mapping[str, Any]
    predictions: Kept | None
    robustness: Mapping[str, Any]
    missing: list[str]
    samples: Sequence[Mapping[str, Any]] = ()

    @property
    def final_split(self) -> str | None:
        """The split of the headline: test, or else the last evaluated split."""
        splits = list(mapping(self.result.get("metrics")))
        return FINAL_SPLIT if FINAL_SPLIT in splits else (splits[-1] if splits else None)

    @property
    def units(self) -> Mapping[str, str]:
        """The units of the metrics. Runs of older versions do not record them."""
        if "kind" in self.result:
            return {name: text(unit) for name, unit in mapping(self.result.get("units")).items()}
        is_classifier = isinstance(self.predictions, Predictions | ClassificationOutcomes)
        nats = {"loss": "nats"} if is_classifier else {}
        return {**nats, "accuracy": FRACTION}

    @property
    def notice(self) -> str:
        """The notice about the data, which a reader of the metrics must know."""
        return text(self.result.get("notice") or self.run.get("notice") or "")


def read_record(folder: Path) -> Record:
    """Reads the folder of a run.

    Raises:
      UserError: the folder does not hold a run.
    """
    run = RunFolder(folder)
    record = run.record if folder.is_dir() else None
    if not isinstance(record, dict):
        raise UserError(f"{folder} does not hold a run; give the folder of a run, such as runs/NAME-TIME")
    missing: list[str] = []
    result: Mapping[str, Any] = {}
    try:
        result = run.result or {}
        if not result:
            missing.append(
                "The result: the run has not ended. Start it again with the same folder to resume it."
            )
    except UserError as error:
        missing.append(f"The result: {error}.")
    lines: Sequence[Mapping[str, Any]] = []
    try:
        run.verify(run.metrics_path)
        lines = readable_lines(run.metrics_path)
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
        missing.append("Predictions: none were kept at the end of the run.")
    robustness = _read_robustness(run, result, missing)
    samples = run.samples
    return Record(record, lines, result, predictions, robustness, missing, samples)


def interval_of(result: Mapping[str, Any], split: str, name: str) -> tuple[float, float] | None:
    """Returns the bounds of the 95 % interval of a metric; `None` if the result has none."""
    bounds = mapping(mapping(result.get("intervals")).get(split)).get(name)
    if not isinstance(bounds, list) or len(bounds) != 2:
        return None
    return number(bounds[0]), number(bounds[1])


def mapping(value: Any) -> Mapping[str, Any]:
    """Returns a mapping unchanged, and an empty mapping for any other value."""
    return value if isinstance(value, Mapping) else {}


def items(value: Any) -> list[Any]:
    """Returns a list unchanged, and an empty list for any other value."""
    return list(value) if isinstance(value, list | tuple) else []


def number(value: Any) -> float:
    """Returns a number unchanged, and NaN for any other value."""
    try:
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:  # an integer with hundreds of digits
        return math.nan


def text(value: Any) -> str:
    """Returns a string unchanged, and any other value as JSON (`none` for None). Long text is truncated."""
    if value is None:
        return "none"
    found = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return found if len(found) <= MAX_TEXT else f"{found[:MAX_TEXT]}… ({len(found):,} characters)"


def _read_robustness(run: RunFolder, result: Mapping[str, Any], missing: list[str]) -> Mapping[str, Any]:
    try:
        found = mapping(run.robustness)
    except UserError as error:
        missing.append(f"Robustness: {error}.")
        return {}
    if found and found.get("params_digest") != result.get("params_digest"):
        missing.append("Robustness: it was measured with other parameters; measure it again.")
        return {}
    return found
