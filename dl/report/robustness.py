"""The section about `python -m dl robustness`: accuracy over severity, and the mean errors."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dl.report.plots import Plot, Series, Table, plot
from dl.report.record import mapping, number, text


@dataclasses.dataclass(frozen=True)
class Robustness:
    """The section of a classifier that was measured on corrupted images.

    Attributes:
      sample: text about the images that were used.
      figures: the name and the value of each metric.
      plots: accuracy over severity.
    """

    sample: str
    figures: Sequence[tuple[str, str]]
    plots: Sequence[Plot]


def robustness_section(found: Mapping[str, Any]) -> Robustness | None:
    """Returns the section of robustness.json, which is not trusted; `None` if there is nothing to show."""
    clean = mapping(found.get("clean"))
    series, rows = [], []
    for style, (name, cells) in enumerate(mapping(found.get("corruptions")).items()):
        cells = [clean, *map(mapping, cells)] if isinstance(cells, list) else [clean]
        accuracy = [number(cell.get("accuracy")) for cell in cells]
        label = name.replace("_", " ")
        series.append(Series(label, np.arange(len(cells)), accuracy, style, has_dots=True))
        rows.append((label, *(_with_interval(cell, "accuracy") for cell in cells)))
    if not series:
        return None
    length = max(map(len, rows))
    table = Table(
        "Accuracy with its 95 % interval, by severity",
        ("corruption", "as stored", *map(str, range(1, length - 1))),
        [(*row, *[""] * (length - len(row))) for row in rows],
    )
    names = {
        "clean": ("accuracy on the images as stored", "accuracy"),
        "mean_corruption_error": ("mean corruption error, not normalised by a baseline", "value"),
        "mCE": ("mCE; 1 is the baseline", "value"),
        "relative_mCE": ("relative mCE; 1 is the baseline", "value"),
    }
    figures = [
        (title, _with_interval(mapping(found[name]), key))
        for name, (title, key) in names.items()
        if name in found
    ]
    data = mapping(found.get("dataset"))
    lowest = min(((a, line.name) for line in series for a in line.y if np.isfinite(a)), default=None)
    worst = f" The lowest is {lowest[0]:.4f}, under {lowest[1]}." if lowest else ""
    return Robustness(
        f"{number(found.get('num_examples')):,.0f} examples of the {text(found.get('split'))} split of "
        f"{text(data.get('name'))}, with the constants of {text(found.get('constants'))}",
        figures,
        [
            plot(
                "Accuracy by corruption",
                f"Accuracy over the severity of {len(series)} corruptions; 0 is the images as stored.{worst}",
                "severity",
                "accuracy",
                series,
                x_range=(0.0, max(length - 2.0, 1.0)),
                y_range=(0.0, 1.0),
                table=table,
            )
        ],
    )


def _with_interval(cell: Mapping[str, Any], key: str) -> str:
    bounds = cell.get("interval")
    low, high = map(number, bounds) if isinstance(bounds, list) and len(bounds) == 2 else (np.nan, np.nan)
    spread = f"{low:.4f} to {high:.4f}" if np.isfinite([low, high]).all() else "no interval"
    return f"{number(cell.get(key)):.4f} ({spread})"
