"""The rows of a sweep: one for each trial, as sweep.json holds them, and what proposes a trial from them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from dl.studies.folder import Study, damaged
from dl.studies.search import Point

Row = dict[str, Any]
"""`trial`, `options`, `value` of the metric (None if the trial failed), `error`, whether it `has_diverged`,
`metrics`, `folder`, and which `member` of the run there it is, where that has several."""


class Proposals(Protocol):
    """A search method that proposes the point of a trial from the finished trials."""

    def propose(self, trial: int, finished: Sequence[Row]) -> Point:
        """Returns the point of a trial."""
        ...

    def point(self, options: Mapping[str, Any]) -> Point:
        """Returns the point with the options of a row, which are JSON values."""
        ...


def rows_of(record: Mapping[str, Any], study: Study) -> dict[int, Row]:
    """Returns the rows of a record by their numbers.

    Raises:
      UserError: the rows are not valid.
    """
    kinds = {"trial": int, "options": dict, "folder": str}
    rows = record.get("trials")
    if not isinstance(rows, list):
        raise damaged(study.path, "it does not hold trials")
    for row in rows:
        if not isinstance(row, dict) or any(not isinstance(row.get(n), kind) for n, kind in kinds.items()):
            raise damaged(study.path, "a trial lacks its number, its options or its folder")
        value = row.get("value")
        is_number = isinstance(value, float | int) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number and not (value is None and isinstance(row.get("error"), str)):
            raise damaged(study.path, f"trial {row['trial']} has neither a value nor an error")
    if len({row["trial"] for row in rows}) < len(rows):
        raise damaged(study.path, "it holds a trial twice")
    return {row["trial"]: row for row in rows}


def name_of(rows: Sequence[Row]) -> str:
    """Returns the name of the folder of the run, or of the piece, that trains trials."""
    others = f"-and-{len(rows) - 1}-more" if len(rows) > 1 else ""
    return f"trial-{rows[0]['trial']:03d}{others}"
