"""Learning curves of a run, from the lines of metrics.jsonl."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dl.report.plots import HUGE, MAX_POINTS, Plot, Series, Table, plot
from dl.report.record import interval_of, items, mapping, number
from dl.stopping import FINAL_SPLIT

# The label of the axis for known metrics. Each metric has a plot.
_OF_TRAINING = {
    "learning_rate": ("Learning rate", "rate"),
    "gradient_norm": ("Norm of the gradient", "norm"),
    "loss_scale": ("Loss scale", "factor"),
    "examples_per_second": ("Throughput", "examples a second, since step 0"),
}
_NO_METRICS = {"kind", "step", "epoch", "seconds", "seeds", *_OF_TRAINING}
MAX_ROWS = 40  # rows of a table beside a plot
MAX_PANELS = 12
MAX_FOLDS = 1_000
MAX_SPLITS = 8  # splits that a plot can distinguish


def curves(lines: Sequence[Mapping[str, Any]], units: Mapping[str, str]) -> list[Plot]:
    """Returns a plot of each metric over the epochs: the loss first, metrics of training only last.

    A run that ends within its first epoch is plotted over its steps.

    Args:
      lines: the lines of metrics.jsonl.
      units: the unit of each metric. A metric without a unit is labelled "value".
    """
    kinds = [kind for kind in dict.fromkeys(str(line.get("kind")) for line in lines) if kind != "train"]
    # The final split has a single value.
    splits = [kind for kind in kinds if kind not in ("epoch", FINAL_SPLIT)][:MAX_SPLITS]
    names = dict.fromkeys(
        name
        for line in lines
        for name, value in line.items()
        if name not in _NO_METRICS and _is_number(value)
    )
    ordered = sorted(names, key=lambda name: (name != "loss", name != "accuracy"))[:MAX_PANELS]
    axis = "epoch" if any(number(line.get("epoch")) >= 1 for line in lines) else "step"
    panels = [_metric(lines, name, splits, units.get(name, "value"), axis) for name in ordered]
    panels += [
        _of_training(lines, name, title, unit, axis)
        for name, (title, unit) in _OF_TRAINING.items()
        if any(_is_number(line.get(name)) for line in lines if line.get("kind") == "train")
    ]
    return panels


def _metric(
    lines: Sequence[Mapping[str, Any]], name: str, splits: Sequence[str], unit: str, axis: str
) -> Plot:
    series = [Series("training, by step", *_smoothed(*_points(lines, "train", name, axis)), style=9)]
    means = _points(lines, "epoch", name, axis)
    series.append(Series("training, mean between evaluations", *means, 0, has_dots=True))
    for number_, split in enumerate(splits, 1):
        series.append(Series(split, *_points(lines, split, name, axis), number_, has_dots=True))
    series = [line for line in series if len(line.x)]
    shown = [line for line in series if line.has_dots] or series
    title = name.replace("_", " ").capitalize()
    return plot(
        title,
        f"{title} over the {axis}s, of {', '.join(line.name for line in series)}. {_ends(shown)}",
        axis,
        unit,
        series,
        table=_table(title, shown, axis),
    )


def _of_training(lines: Sequence[Mapping[str, Any]], name: str, title: str, unit: str, axis: str) -> Plot:
    line = Series(title, *_smoothed(*_points(lines, "train", name, axis)))
    described = f"{title} over the {axis}s. {_ends([line])}"
    return plot(title, described, axis, unit, [line], table=_table(title, [line], axis))


def _points(
    lines: Sequence[Mapping[str, Any]], kind: str, name: str, axis: str
) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(number(line.get(axis)), number(line.get(name))) for line in lines if line.get("kind") == kind]
    array = np.array([pair for pair in pairs if (np.abs(pair) < HUGE).all()]).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def _smoothed(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns means over neighbouring points, so that there are at most `MAX_POINTS`."""
    if len(x) <= MAX_POINTS:
        return x, y
    parts = np.array_split(np.arange(len(x)), MAX_POINTS)
    return np.array([x[part].mean() for part in parts]), np.array([y[part].mean() for part in parts])


def _table(title: str, series: Sequence[Series], axis: str) -> Table:
    values = [
        dict(zip(np.round(line.x, 3).tolist(), np.asarray(line.y).tolist(), strict=True)) for line in series
    ]
    places = sorted({place for line in values for place in line})
    if len(places) > MAX_ROWS:
        places = [places[k] for k in np.linspace(0, len(places) - 1, MAX_ROWS).round().astype(int)]
    rows = [
        (f"{place:.8g}", *(f"{line[place]:.5g}" if place in line else "" for line in values))
        for place in places
    ]
    return Table(title, (axis, *(line.name for line in series)), rows)


def _ends(series: Sequence[Series]) -> str:
    return " ".join(f"{s.name}: {s.y[0]:.4g} at first, {s.y[-1]:.4g} at last." for s in series if len(s.y))


def _is_number(value: Any) -> bool:
    return bool(np.isfinite(number(value)))


def seed_points(result: Mapping[str, Any], split: str) -> list[Plot]:
    """Returns a plot of each metric of a split: a point for each seed, their mean and its interval."""
    members = [mapping(member) for member in items(result.get("members"))]
    if not members:
        return []
    places, label = _places(members)
    seeds = [str(member.get("seed")) for member in members]
    return _scattered(result, split, members, places, label, "seed", seeds)


def fold_points(record: Mapping[str, Any]) -> list[Plot]:
    """Returns a plot of each metric of a cross-validation: each fold, their mean and its interval."""
    folds = [mapping(fold) for fold in items(record.get("folds"))][:MAX_FOLDS]
    if not folds:
        return []
    numbers = np.arange(1, len(folds) + 1)
    return _scattered(record, "validation", folds, numbers, "fold", "fold", [str(n) for n in numbers])


def _scattered(
    record: Mapping[str, Any],
    split: str,
    runs: Sequence[Mapping[str, Any]],
    places: np.ndarray,
    label: str,
    kind: str,
    names: Sequence[str],
) -> list[Plot]:
    """Returns a plot of each metric of several runs that differ in one property.

    Args:
      record: the record with `metrics` and `intervals` over all runs.
      split: the split whose metrics are shown.
      runs: the record of each run, with `metrics`.
      places: the positions of the runs on the horizontal axis.
      label: the label of this axis.
      kind: the property in which the runs differ.
      names: the names of the runs in the table.
    """
    plots: list[Plot] = []
    for name, mean in list(mapping(mapping(record.get("metrics")).get(split)).items())[:MAX_PANELS]:
        values = [number(mapping(mapping(run.get("metrics")).get(split)).get(name)) for run in runs]
        low, high = interval_of(record, split, name) or (np.nan, np.nan)
        ends = np.array([places.min() - 0.5, places.max() + 0.5])
        title = f"{name.replace('_', ' ').capitalize()} by {kind}, {split} split"
        rows = [(run, f"{value:.5g}") for run, value in zip(names, values, strict=True)][:MAX_ROWS]
        if len(names) > MAX_ROWS:
            rows.append((f"{len(names) - MAX_ROWS:,} more", ""))
        rows += [("mean", f"{number(mean):.5g}"), ("95 % interval", f"{low:.5g} to {high:.5g}")]
        plots.append(
            plot(
                title,
                f"{len(values)} points; mean {number(mean):.4g}, 95 % interval {low:.4g} to {high:.4g}.",
                label,
                name.replace("_", " "),
                [
                    Series(f"one {kind}", places, values, 0, has_dots=True, has_line=False),
                    Series("mean", ends, np.full(2, number(mean)), 1),
                    Series("95 % interval of the mean", ends, np.full(2, low), 2),
                    Series("", ends, np.full(2, high), 2),
                ],
                x_range=(float(ends[0]), float(ends[1])),
                has_whole_x=True,
                y_range=_tight([*values, low, high]),
                table=Table(title, (kind, name), rows),
            )
        )
    return plots


def _places(members: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, str]:
    """Returns the position of each run on the axis, and the label of the axis: seeds if they are close."""
    seeds = [member.get("seed") for member in members]
    whole = [seed for seed in seeds if isinstance(seed, int) and 0 <= seed < 2**32]
    if len(set(whole)) == len(seeds) and max(whole) - min(whole) < 2 * len(whole):
        return np.asarray(whole), "seed"
    return np.arange(1, len(seeds) + 1), "number of the run"


def _tight(values: Sequence[float]) -> tuple[float, float] | None:
    finite = [value for value in values if np.isfinite(value)]
    if not finite or max(finite) == min(finite):
        return None
    pad = 0.08 * (max(finite) - min(finite))
    return min(finite) - pad, max(finite) + pad
