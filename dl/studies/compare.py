"""`python -m dl compare RUN_A RUN_B …`: reads the folders of runs, prints and writes how they differ."""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

from dl.cli.options import parse
from dl.data.splits import short_notice
from dl.errors import UserError
from dl.option_types import OutputFile
from dl.runs.console import save_text
from dl.runs.folder import Run
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
from dl.system.files import named_path

PROG = "python -m dl compare"


@dataclasses.dataclass(frozen=True)
class CompareOptions:
    """Options of `compare`.

    Attributes:
      markdown: a file to write the tables to.
      latex: a file to write the tables to.
    """

    markdown: OutputFile | None = None
    latex: OutputFile | None = None


def compare_runs(argv: Sequence[str]) -> tuple[list[Table], list[str]]:
    """Compares finished runs: what was done differently, and whether what came out differs.

    The first is compared with each other one; RUN may be several runs that differ in their seed, A1,A2,A3.
    A run is called better only where a 95 % interval of the paired difference excludes zero; with several
    comparisons each interval is wider, so that all hold together with 95 % (Bonferroni).

    Returns:
      The tables, and a line for each figure.

    Raises:
      UserError: a folder without a finished run, or runs on different data.
    """
    words = list(itertools.takewhile(lambda word: not word.startswith("-"), argv))
    _, options = parse(lambda: None, CompareOptions, argv[len(words) :], f"{PROG} RUN_A RUN_B", _about())
    if len(words) < 2:
        raise UserError(f"compare needs two runs at least: {PROG} RUN_A RUN_B, each the folder of a run")
    sides = [[read_run(named_path(name)) for name in word.split(",") if name] for word in words]
    if not all(sides):
        raise UserError("a side without a run cannot be compared; write it as RUN or RUN1,RUN2")
    check_comparable(sides)
    first, *others = sides
    confidence = 1 - 0.05 / len(others)
    tables, lines = [differences_in_setup(sides)], []
    for other in others:
        differences = compare(first, other, confidence)
        tables.append(table_of(differences, first, other, confidence))
        lines += [_sentence(row, first, other, confidence) for row in differences]
    notices = [evidence.result.get("notice") for side in sides for evidence in side]
    lines += [f"NOTE: {short_notice(notice)}" for notice in dict.fromkeys(notices) if notice]
    if options.markdown is not None:
        markdown = "\n\n".join(table.to_markdown() for table in tables)
        save_text(markdown, options.markdown)
    if options.latex is not None:
        latex = "\n\n".join(table.to_latex() for table in tables)
        save_text(latex, options.latex)
    return tables, lines


def read_run(folder: Path) -> Evidence:
    """Returns what the folder of a finished run holds.

    Raises:
      UserError: it holds no run, or one that has not finished, or a file cannot be read.
    """
    run = Run(folder, "", {})
    record, result = run.record, run.result
    if record is None:
        hint = f", such as {folder / 'fold-1'}" if (folder / "folds.json").exists() else ""
        raise UserError(f"{folder} holds no run; give the folder of one{hint}")
    if result is None:
        raise UserError(f"the run in {folder} has not finished; run its command again first")
    predictions = None
    run.verify(run.predictions_path)
    if run.predictions_path.exists():
        predictions = vars(read_predictions(run.predictions_path))
    return Evidence(str(folder), record, result, predictions)


def _sentence(row: Difference, first: Side, other: Side, confidence: float) -> str:
    figure = f"{row.split} {row.metric}"
    if row.difference is None or row.p_value is None:
        return f"{figure}: {row.verdict} ({row.test})"
    estimate, low, high = row.difference
    evidence = f"by {estimate:+.4f}, {100 * confidence:.4g} % {low:+.4f}..{high:+.4f}, p={row.p_value:.2g}"
    if row.verdict in ("better", "worse"):
        return f"{figure}: {name_of(other)} is {row.verdict} than {name_of(first)} {evidence}"
    return f"{figure}: {row.verdict} between {name_of(first)} and {name_of(other)} {evidence}"


def _about() -> str:
    return " ".join((compare_runs.__doc__ or "").partition("Returns:")[0].split())
