"""The comparison of finished runs from their folders: their settings, and their metrics."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from dl.data.splits import short_notice
from dl.errors import UserError
from dl.runs.baseline import baseline_lines, baseline_table
from dl.runs.folder import RunFolder
from dl.runs.predictions import read_predictions
from dl.runs.tables import Table
from dl.studies.comparison import (
    Difference,
    Evidence,
    Side,
    check_comparable,
    compare,
    counted,
    differences_in_setup,
    name_of,
    table_of,
    tables_by_metric,
    transposed,
)

MAX_OTHERS = 6
"""The largest number of other sides that have a table and sentences each. More have a row each."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The comparison of finished runs.

    Attributes:
      sides: the runs of each side. The first side is compared with each of the others.
      differences: the differences of each other side to the first, by metric.
      confidence: the confidence level of the intervals, such as 0.95.
    """

    sides: Sequence[Side]
    differences: Sequence[Sequence[Difference]]
    confidence: float

    @property
    def tables(self) -> list[Table]:
        """The settings that differ, then the metrics for each other side, then the baselines, if any.

        With more than `MAX_OTHERS` other sides there is a table for each metric, with a row for each side.
        """
        first, *others = self.sides
        setup = differences_in_setup(self.sides)
        if len(others) > MAX_OTHERS:
            setup = transposed(setup)
            tables = tables_by_metric(self.differences, first, others, self.confidence)
        else:
            pairs = zip(self.differences, others, strict=True)
            tables = [table_of(rows, first, other, self.confidence) for rows, other in pairs]
        baselines = baseline_table({run.name: run.result for side in self.sides for run in side})
        return [setup, *tables, *([] if baselines is None else [baselines])]

    @property
    def lines(self) -> list[str]:
        """A sentence for each metric of each other side, and the notices about the data.

        With more than `MAX_OTHERS` other sides there is a sentence for each metric, which counts verdicts.
        """
        first, *others = self.sides
        if len(others) > MAX_OTHERS:
            lines = counted(self.differences, first)
        else:
            lines = [
                _sentence(row, first, other, self.confidence)
                for rows, other in zip(self.differences, others, strict=True)
                for row in rows
            ]
            for run in (run for side in self.sides for run in side):
                lines += [f"{run.name}: {line}" for line in baseline_lines(run.result)]
        notices = [evidence.result.get("notice") for side in self.sides for evidence in side]
        return lines + [f"NOTE: {short_notice(notice)}" for notice in dict.fromkeys(notices) if notice]


def compare_runs(*sides: Path | Sequence[Path]) -> Comparison:
    """Compares the settings of finished runs, and tests whether their metrics differ.

    The first side is compared with each of the others. A run is called better only if the 95 % interval of
    the paired difference excludes zero and the test rejects equality. With several comparisons each interval
    is wider, so that all of them hold together with 95 % (Bonferroni).

    Args:
      sides: at least two sides. Each is the folder of a run, or the folders of runs that differ only in their
        seed.

    Raises:
      UserError: a folder without a finished run, or runs on different data.
    """
    folders = [[side] if isinstance(side, Path) else list(side) for side in sides]
    if len(folders) < 2:
        raise UserError("a comparison needs at least two runs; give the folder of another run")
    if not all(folders):
        raise UserError(
            "a side of the comparison has no run; give the folder of at least one run for each side"
        )
    read = [[read_run(folder) for folder in side] for side in folders]
    check_comparable(read)
    first, *others = (
        list(zip(side, of_side, strict=True)) for side, of_side in zip(read, folders, strict=True)
    )
    confidence = 1 - 0.05 / len(others)
    start = _with_predictions(first)
    # The predictions of two sides are in memory at the same time, for any number of sides.
    differences = [compare(start, _with_predictions(other), confidence) for other in others]
    return Comparison(read, differences, confidence)


def read_run(folder: Path) -> Evidence:
    """Reads the folder of a finished run, without its predictions.

    Raises:
      UserError: the folder does not hold a finished run, or a file cannot be read.
    """
    run = RunFolder(folder)
    record = run.record
    if record is None:
        hint = f", such as {folder / 'fold-1'}" if (folder / "folds.json").exists() else ""
        raise UserError(f"{folder} does not hold a run; give the folder of a run{hint}")
    return Evidence(str(folder), record, run.finished_result())


def _with_predictions(side: Sequence[tuple[Evidence, Path]]) -> Side:
    """Returns a side with its predictions if it is one run, because only then they are paired."""
    read = []
    for evidence, folder in side:
        run = RunFolder(folder)
        run.verify(run.predictions_path)
        if len(side) == 1 and run.predictions_path.exists():
            predictions = vars(read_predictions(run.predictions_path))
            evidence = dataclasses.replace(evidence, predictions=predictions)
        read.append(evidence)
    return read


def _sentence(row: Difference, first: Side, other: Side, confidence: float) -> str:
    name = f"{row.split} {row.metric}"
    if row.difference is None or row.p_value is None:
        return f"{name}: {row.verdict} ({row.test})"
    estimate, low, high = row.difference
    evidence = f"by {estimate:+.4f}, {100 * confidence:.4g} % {low:+.4f}..{high:+.4f}, p={row.p_value:.2g}"
    if row.verdict in ("better", "worse"):
        return f"{name}: {name_of(other)} is {row.verdict} than {name_of(first)} {evidence}"
    return f"{name}: {row.verdict} between {name_of(first)} and {name_of(other)} {evidence}"
