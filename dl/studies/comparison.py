"""The comparison of two sides: the settings that differ, and paired tests of the metrics.

A side is one run, or several runs that differ in their seeds. Pairs are the same test examples, or the same
seeds.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dl.errors import UserError
from dl.evaluation.intervals import Interval, t_interval
from dl.evaluation.paired import paired_t, verdict
from dl.runs.tables import Table
from dl.stopping import FINAL_SPLIT
from dl.studies.pairing import pair_examples

_PER_TOKEN = ("loss", "accuracy", "perplexity")
# Directions of metrics in runs of older versions, which do not record them.
_BETTER = {"loss": "min", "accuracy": "max", "penalty": "min"}


@dataclass(frozen=True)
class Evidence:
    """The content of the folder of a finished run.

    Attributes:
      name: the path of the folder.
      record: the content of run.json.
      result: the content of result.json.
      predictions: the fields of the `Kept` in predictions.npz. `None` if there are no predictions.
    """

    name: str
    record: Mapping[str, Any]
    result: Mapping[str, Any]
    predictions: Mapping[str, Any] | None = None


Side = Sequence[Evidence]


@dataclass(frozen=True)
class Difference:
    """The difference of a metric between the other side and the first side.

    Attributes:
      split: the evaluated split.
      metric: the name of the metric.
      first: its value on the first side, the mean over seeds if there are several.
      other: its value on the other side, the mean over seeds if there are several.
      difference: other - first, over the pairs, with its interval. `None` if there are no pairs.
      p_value: the p-value of the paired test.
      test: the name of the test, or why there is no test.
      verdict: `better` or `worse` (the other side) only if the interval excludes zero and the test rejects.
    """

    split: str
    metric: str
    first: float
    other: float
    difference: Interval | None
    p_value: float | None
    test: str
    verdict: str


def check_comparable(sides: Sequence[Side]) -> None:
    """Raises UserError if the runs were measured on different data, or if a side mixes experiments."""
    first = sides[0][0]
    for evidence in (evidence for side in sides for evidence in side):
        ours, theirs = (_data(one) for one in (first, evidence))
        if ours != theirs:
            raise UserError(
                f"{first.name} and {evidence.name} were measured on different data, {_named(ours)} and "
                f"{_named(theirs)}; compare runs on the same data"
            )
    for side in sides:
        for evidence in side[1:]:
            for key, _ in _differing([_asked_for(side[0].record), _asked_for(evidence.record)]):
                raise UserError(
                    f"{side[0].name} and {evidence.name} are on one side but differ in {key}; the runs of a "
                    "side may differ only in their seed"
                )


def differences_in_setup(sides: Sequence[Side]) -> Table:
    """Returns what differs between the sides: options, code, data, versions, commit, devices, size."""
    rows = [[key, *map(_shown, values)] for key, values in _differing([_facts(side) for side in sides])]
    return Table("what differs", ["", *map(name_of, sides)], rows or [["nothing", *[""] * len(sides)]])


def compare(first: Side, other: Side, confidence: float = 0.95) -> list[Difference]:
    """Compares each metric that both sides have measured, with a test if there are pairs.

    If both sides have the same seeds, at least two: Student's paired test, with its interval of the mean
    difference. If each side is one run with predictions for the same examples: McNemar's exact test of the
    accuracies with Newcombe's interval, and Student's paired test of other means over the examples. A verdict
    needs both the interval and the test.

    Raises:
      UserError: the members of a run differ in more than their seeds, or there is no common metric.
    """
    figures_a, figures_b = _by_seed(first), _by_seed(other)
    result = []
    for split, metric in _names(figures_a):
        if (split, metric) in _names(figures_b):
            result.append(_difference(split, metric, (first, figures_a), (other, figures_b), confidence))
    if not result:
        raise UserError(
            f"{name_of(first)} and {name_of(other)} do not share a metric; compare runs with the same metrics"
        )
    return result


def table_of(differences: Sequence[Difference], first: Side, other: Side, confidence: float = 0.95) -> Table:
    """Returns the table of the metrics of two sides with their tests."""
    rows = []
    for row in differences:
        shown = "" if row.difference is None else f"{row.difference.estimate:+.4f}"
        bounds = "" if row.difference is None else f"{row.difference.low:+.4f}..{row.difference.high:+.4f}"
        p_value = "" if row.p_value is None else f"{row.p_value:.2g}"
        figures = [f"{row.first:.4f}", f"{row.other:.4f}", shown, bounds, p_value]
        rows.append([f"{row.split} {row.metric}", *figures, row.test, row.verdict])
    header = [
        "",
        name_of(first),
        name_of(other),
        "difference",
        f"{100 * confidence:.4g} % interval",
        "p",
        "test",
    ]
    return Table(f"{name_of(other)} against {name_of(first)}", [*header, name_of(other)], rows)


def tables_by_metric(
    differences: Sequence[Sequence[Difference]], first: Side, others: Sequence[Side], confidence: float
) -> list[Table]:
    """Returns a table for each metric, with a row for each other side."""
    found: dict[str, list[list[str]]] = {}
    values: dict[str, float] = {}
    for rows, other in zip(differences, others, strict=True):
        for name, _, *cells in table_of(rows, first, other, confidence).rows:
            found.setdefault(name, []).append([name_of(other), *cells])
        values |= {f"{row.split} {row.metric}": row.first for row in rows}
    header = ["", "value", "difference", f"{100 * confidence:.4g} % interval", "p", "test", "verdict"]
    return [
        Table(f"{name} against {name_of(first)} ({values[name]:.4f})", header, rows)
        for name, rows in found.items()
    ]


def counted(differences: Sequence[Sequence[Difference]], first: Side) -> list[str]:
    """Returns a sentence for each metric that says how many other sides have which verdict."""
    verdicts: dict[str, Counter[str]] = {}
    for row in (row for rows in differences for row in rows):
        verdicts.setdefault(f"{row.split} {row.metric}", Counter())[row.verdict] += 1
    return [
        f"{name} against {name_of(first)}: "
        + ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())
        for name, counts in verdicts.items()
    ]


def transposed(table: Table) -> Table:
    """Returns a table with rows and columns exchanged."""
    header, *rows = zip(table.header, *table.rows, strict=True)
    return Table(table.title, header, rows)


def name_of(side: Side) -> str:
    return side[0].name if len(side) == 1 else f"{side[0].name} + {len(side) - 1}"


BySeed = dict[int, Mapping[str, Mapping[str, Any]]]


def _difference(
    split: str, metric: str, a: tuple[Side, BySeed], b: tuple[Side, BySeed], confidence: float
) -> Difference:
    (first, figures_a), (other, figures_b) = a, b
    values_a, values_b = (
        np.array([np.nan if (v := row[split][metric]) is None else v for _, row in sorted(figures.items())])
        for figures in (figures_a, figures_b)
    )
    interval, p_value = None, None
    sizes = [side[0].result["dataset"]["sizes"].get(split) for side in (first, other)]
    if metric in _PER_TOKEN and _have_other_tokens(first[0], other[0]):
        test = "their tokenizers differ; compare bits_per_byte"
    elif sizes[0] != sizes[1]:
        test = f"{split} has {sizes[0]:,} and {sizes[1]:,} examples"
    elif len(values_a) > 1 and figures_a.keys() == figures_b.keys():
        test = f"paired t over {len(values_a)} seeds"
        if not np.isfinite(values_b - values_a).all():
            test = "a run has diverged"
        elif np.ptp(values_b - values_a) == 0 and (values_a != values_b).any():
            test = "the same difference for each seed: no spread to judge it by"
        else:
            interval = t_interval(values_b - values_a, confidence)
            p_value = paired_t(values_b, values_a)
    elif len(values_a) > 1 or len(values_b) > 1:
        test = "the seeds are not the same on both sides"
    elif _split_of(first[0]) != split or _split_of(other[0]) != split:
        test = "one seed, and no predictions to pair"
    else:
        values = float(values_a[0]), float(values_b[0])
        sides = first[0].predictions or {}, other[0].predictions or {}
        test, interval, p_value = pair_examples(*sides, metric, values, confidence)
    means = float(values_a.mean()), float(values_b.mean())
    better = first[0].result.get("better", _BETTER).get(metric)
    words = verdict(interval, p_value, better, confidence)
    return Difference(split, metric, *means, interval, p_value, test, words)


def _have_other_tokens(first: Evidence, other: Evidence) -> bool:
    """Returns whether the metrics of two runs are means over tokens of different tokenizers."""
    tokenizers = {json.dumps(one.record.get("data", {}).get("tokenizer")) for one in (first, other)}
    is_of_tokens = first.result.get("units", {}).get("loss") == "nats a token"
    return is_of_tokens and len(tokenizers) > 1


def _split_of(evidence: Evidence) -> str | None:
    if evidence.predictions is None:
        return None
    return str(evidence.predictions.get("split", FINAL_SPLIT))


def _by_seed(side: Side) -> BySeed:
    """Returns the metrics of each seed of a side."""
    result: BySeed = {}
    for evidence in side:
        for member in evidence.result.get("members", [evidence.result]):
            if member["seed"] in result:
                raise UserError(
                    f"{evidence.name} has seed {member['seed']} twice on its side; give runs with "
                    "different seeds"
                )
            result[member["seed"]] = member["metrics"]
    return result


def _names(figures: BySeed) -> list[tuple[str, str]]:
    rows = list(figures.values())
    return [
        (split, metric)
        for split, values in rows[0].items()
        for metric in values
        if all(metric in row.get(split, {}) for row in rows)
    ]


def _facts(side: Side) -> dict[str, Any]:
    record, result = side[0].record, side[0].result
    seeds = sorted(_by_seed(side))
    return {
        **_asked_for(record),
        "seed": ", ".join(map(str, seeds)),
        **{f"{split} examples": size for split, size in result["dataset"]["sizes"].items()},
        "parameters": result.get("num_parameters"),
        "steps": result.get("steps"),
        **(record.get("versions") or {}),
        "commit": record.get("commit"),
        "uncommitted changes": record.get("uncommitted_changes"),
        "devices": ", ".join(sorted(set(result.get("devices", [])))),
        "mesh": result.get("mesh"),
    }


def _asked_for(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns experiment, code and options, without the options about seeds."""
    options = {k: v for k, v in record["options"].items() if k not in ("seed", "num_seeds", "members")}
    return {"experiment": record["experiment"], "code": record.get("code"), **options}


def _differing(facts: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Any]]]:
    """Returns each key whose values are not equal in all `facts`, with these values."""
    keys = dict.fromkeys(key for one in facts for key in one)
    values = [(key, [one.get(key) for one in facts]) for key in keys]
    return [(key, row) for key, row in values if any(value != row[0] for value in row)]


def _data(evidence: Evidence) -> tuple[str, str, str]:
    dataset = evidence.result["dataset"]
    return dataset["name"], dataset["version"], dataset["checksum"]


def _named(data: tuple[str, str, str]) -> str:
    return f"{data[0]}:{data[1]} (sha256 {data[2][:12]})"


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:12]}…"
