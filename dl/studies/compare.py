"""The comparison of finished runs, read from their folders: how they were made, how their metrics differ."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from dl.data.splits import short_notice
from dl.errors import UserError
from dl.runs.folder import RunFolder
from dl.runs.predictions import read_predictions
from dl.runs.tables import Table
from dl.studies.comparison import (
    Difference,
    Evidence,
    Side,
    check_comparable,
    compare,
    differences_in_setup,
    name_of,
    table_of,
)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How finished runs differ.

    Attributes:
      sides: the runs of each side, the first of which is compared with each other one.
      differences: of each other side, by metric.
      confidence: of the intervals.
    """

    sides: Sequence[Side]
    differences: Sequence[Sequence[Difference]]
    confidence: float

    @property
    def tables(self) -> list[Table]:
        """What was done differently, then a table of the metrics for each other side."""
        first, *others = self.sides
        pairs = zip(self.differences, others, strict=True)
        tables = [table_of(rows, first, other, self.confidence) for rows, other in pairs]
        return [differences_in_setup(self.sides), *tables]

    @property
    def lines(self) -> list[str]:
        """A sentence for each metric of each other side, and what is to be known of the data."""
        first, *others = self.sides
        lines = [
            _sentence(row, first, other, self.confidence)
            for rows, other in zip(self.differences, others, strict=True)
            for row in rows
        ]
        notices = [evidence.result.get("notice") for side in self.sides for evidence in side]
        return lines + [f"NOTE: {short_notice(notice)}" for notice in dict.fromkeys(notices) if notice]


def compare_runs(*sides: Path | Sequence[Path]) -> Comparison:
    """Compares finished runs: what was done differently, and whether the metrics differ.

    The first side is compared with each other one. A run is called better only where a 95 % interval of the
    paired difference excludes zero; with several comparisons each interval is wider, so that all hold
    together with 95 % (Bonferroni).

    Args:
      sides: two at least, each the folder of a run, or the folders of runs that differ in their seed alone.

    Raises:
      UserError: a folder without a finished run, or runs on different data.
    """
    folders = [[side] if isinstance(side, Path) else list(side) for side in sides]
    if len(folders) < 2:
        raise UserError("a comparison needs two runs at least; give the folder of another run")
    if not all(folders):
        raise UserError("a side without a run cannot be compared; give the folder of a run on each side")
    read = [[read_run(folder) for folder in side] for side in folders]
    check_comparable(read)
    first, *others = read
    confidence = 1 - 0.05 / len(others)
    return Comparison(read, [compare(first, other, confidence) for other in others], confidence)


def read_run(folder: Path) -> Evidence:
    """Returns what the folder of a finished run holds.

    Raises:
      UserError: it does not hold a run, or one that has not finished, or a file cannot be read.
    """
    run = RunFolder(folder)
    record, result = run.record, run.result
    if record is None:
        hint = f", such as {folder / 'fold-1'}" if (folder / "folds.json").exists() else ""
        raise UserError(f"{folder} does not hold a run; give the folder of one{hint}")
    if result is None:
        raise UserError(f"the run in {folder} has not finished; run its command again first")
    predictions = None
    run.verify(run.predictions_path)
    if run.predictions_path.exists():
        predictions = vars(read_predictions(run.predictions_path))
    return Evidence(str(folder), record, result, predictions)


def _sentence(row: Difference, first: Side, other: Side, confidence: float) -> str:
    name = f"{row.split} {row.metric}"
    if row.difference is None or row.p_value is None:
        return f"{name}: {row.verdict} ({row.test})"
    estimate, low, high = row.difference
    evidence = f"by {estimate:+.4f}, {100 * confidence:.4g} % {low:+.4f}..{high:+.4f}, p={row.p_value:.2g}"
    if row.verdict in ("better", "worse"):
        return f"{name}: {name_of(other)} is {row.verdict} than {name_of(first)} {evidence}"
    return f"{name}: {row.verdict} between {name_of(first)} and {name_of(other)} {evidence}"
