"""The baselines of a finished run, as text: what result.json says about them under `baselines`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dl.runs.console import format_value
from dl.runs.tables import Table
from dl.stopping import FINAL_SPLIT

_VERDICTS = {
    "better": "better than its baseline",
    "worse": "WORSE than its baseline",
    "no difference shown": "NOT shown to be better than its baseline",
    "not tested": "not compared with its baseline by a test",
}


def baseline_table(results: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """Returns the metrics of runs beside those of their baselines; `None` if no run has a baseline.

    Args:
      results: the content of result.json by the name of the run.
    """
    rows = []
    for name, result in results.items():
        for baseline, split, metric, found in _compared(result):
            network, cheap = (one["metrics"][split][metric] for one in (result, baseline))
            verdict = _VERDICTS.get(found["verdict"], found["verdict"])
            values = (_number(network), _number(cheap), _difference(found))
            rows.append([name, f"{split} {metric}", verdict, *values, baseline["name"], found["test"]])
    header = ["run", "metric", "the network is", "network", "baseline", "network - baseline", "which", "test"]
    return Table("beside the baseline", header, rows) if rows else None


def baseline_lines(result: Mapping[str, Any]) -> Sequence[str]:
    """Returns a sentence about each metric of a run that its baseline has too.

    That a difference is not tested is said of the final split only, since only its examples are kept.
    """
    table = baseline_table({"": result})
    lines = []
    for _, metric, verdict, network, cheap, difference, name, test in table.rows if table else ():
        lines.append(f"{metric} {network}, baseline {cheap} ({name}), difference {difference}")
        if verdict != _VERDICTS["not tested"] or metric.startswith(f"{FINAL_SPLIT} "):
            lines[-1] += f" ({test}): the network is {verdict}"
    return lines


def _compared(
    result: Mapping[str, Any],
) -> Iterator[tuple[Mapping[str, Any], str, str, Mapping[str, Any]]]:
    """Yields baseline, split, metric and what was found, for each metric of each baseline."""
    for baseline in result.get("baselines", ()):
        for split, of_split in baseline["differences"].items():
            for metric, found in of_split.items():
                yield baseline, split, metric, found


def _difference(found: Mapping[str, Any]) -> str:
    estimate, low, high = (_number(found[name], "+") for name in ("estimate", "low", "high"))
    return estimate if found["low"] is None else f"{estimate}, 95 % {low}..{high}"


def _number(value: float | None, sign: str = "") -> str:
    """Formats a metric; result.json holds null for a number that is not finite."""
    if value is None:
        return "nan"
    return (sign if value >= 0 else "") + format_value(value)
