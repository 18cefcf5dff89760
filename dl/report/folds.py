"""The report of a cross-validation, from folds.json, which is not trusted."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dl.data.splits import short_notice
from dl.errors import UserError
from dl.report import curves, sections
from dl.report.html import fill
from dl.report.plots import Table
from dl.report.record import Record, items, mapping, number, text
from dl.runs.console import format_epochs
from dl.system.files import replace_text
from dl.system.json_files import read_json

FOLDS = "folds.json"
_SPLIT = "validation"
_CAVEATS = (
    "The interval is Student's over the folds (Kohavi 1995). Their training sets overlap, so that it is "
    "narrower than it should be; no unbiased one is known (Bengio & Grandvalet 2004).",
)


def write_folds_report(folder: Path, out: Path) -> None:
    """Writes one self-contained HTML file about the folder of a cross-validation.

    Raises:
      UserError: the folder does not hold a cross-validation, or the file cannot be written.
    """
    record = read_json(folder / FOLDS)
    if not isinstance(record, dict):
        raise UserError(f"{folder} does not hold a cross-validation; give the folder of a run with --folds")
    try:
        replace_text(out, render_folds(folder, record))
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({error.strerror or error}); choose another file by --out"
        ) from None


def render_folds(folder: Path, record: Mapping[str, Any]) -> str:
    """Returns the page as HTML."""
    notice = text(record.get("notice") or "")
    as_run = _as_run(record)
    folds = _folds(record)
    missing: list[str] = []
    baseline = sections.baseline(as_run, missing)
    caveats = [*_CAVEATS, *missing]
    if not record.get("with_test"):
        caveats.append("The test split was not read.")
    if record.get("is_selected_on_validation"):
        caveats.append("Each run ended where its own held-out fold looked best, which flatters it.")
    if record.get("is_stratified") is False:
        caveats.append("The folds were drawn at random, not stratified by label.")
    return fill(
        "folds.html",
        name=text(record.get("experiment")),
        folder=str(folder),
        created="",
        notice=notice,
        notice_line=short_notice(notice),
        headline=_headline(record, len(folds.rows)),
        facts=_facts(record),
        figures=dataclasses.replace(sections.figures_table(as_run), title="Means over the folds"),
        baseline=baseline,
        points=curves.fold_points(record),
        folds=folds,
        options=sections.options_table(as_run),
        caveats=caveats,
    )


def _as_run(record: Mapping[str, Any]) -> Record:
    """Returns the record for the sections that a report of a run has too."""
    return Record(run=record, lines=[], result=record, predictions=None, robustness={}, missing=[])


def _headline(record: Mapping[str, Any], num_folds: int) -> Mapping[str, str] | None:
    shown = sections.headline(_as_run(record))
    if shown is None:
        return None
    interval = shown["interval"].split(", over ")[0]
    return {**shown, "interval": f"mean of {num_folds} held-out folds; {interval}"}


def _facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    data = mapping(record.get("dataset"))
    folds = [mapping(fold) for fold in items(record.get("folds"))]
    seconds = sum(number(fold.get("seconds")) for fold in folds)
    found = [("data", f"{text(data.get('name'))} {text(data.get('version'))}")]
    if folds:
        found += [("folds", f"{len(folds):,}"), ("wall time of all", sections.duration(seconds))]
    return found


def _folds(record: Mapping[str, Any]) -> Table:
    folds = [mapping(fold) for fold in items(record.get("folds"))][: curves.MAX_FOLDS]
    names = list(mapping(mapping(record.get("metrics")).get(_SPLIT)))[: curves.MAX_PANELS]
    rows = []
    for fold in folds:
        sizes, metrics = mapping(fold.get("sizes")), mapping(mapping(fold.get("metrics")).get(_SPLIT))
        steps, epochs = number(fold.get("steps")), number(fold.get("epochs"))
        rows.append(
            (
                text(fold.get("folder")),
                *(f"{number(sizes.get(split)):,.0f}" for split in ("train", _SPLIT)),
                f"{steps:,.0f} ({format_epochs(epochs)} epochs)" if epochs >= 0 else f"{steps:,.0f}",
                *(f"{number(metrics.get(name)):.5g}" for name in names),
                sections.duration(number(fold.get("seconds"))),
            )
        )
    heads = ("fold", "trained on", "held out", "steps", *(name.replace("_", " ") for name in names), "time")
    return Table("Each fold, on the examples that its run has not seen", heads, rows)
