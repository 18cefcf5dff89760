"""The scores of texts that a finished run wrote, such as BLEU: they are added to its result.json."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from dl.evaluation.paired import PairedTest, verdict
from dl.evaluation.translation import Scores
from dl.runs.folder import RunFolder
from dl.runs.log import finite
from dl.runs.predictions import add_figures
from dl.system.json_files import write_json


class ScoredBaseline(NamedTuple):
    """A baseline that wrote the same texts.

    Attributes:
      name: text about the baseline.
      seconds: the time that it took.
      scores: its metrics.
      differences: the network minus the baseline, by metric.
    """

    name: str
    seconds: float
    scores: Scores
    differences: Mapping[str, PairedTest]


def add_scores(
    run: RunFolder, split: str, scores: Scores, baseline: ScoredBaseline | None = None
) -> dict[str, Any]:
    """Adds metrics of generated texts to result.json, and returns its content.

    The metrics stand beside the others of the split, with intervals, directions and units. `signatures`
    states the version and the settings of each one. Metrics of the same names are replaced. The baseline is
    added to `baselines`, beside what it scored on other splits.

    Args:
      run: the folder of a finished run.
      split: the split whose texts were written.
      scores: the metrics of the texts of the network.
      baseline: a baseline that wrote the same texts.

    Raises:
      UserError: the run has not finished, or the folder cannot be written.
    """
    result = run.finished_result()
    add_figures(result, split, scores.figures, scores.units)
    result["signatures"] = {**result.get("signatures", {}), **scores.signatures}
    if baseline is not None:
        known = {one["name"]: one for one in result.get("baselines", ())}
        entry, before = _entry(split, baseline), known.get(baseline.name, {})
        for part in ("metrics", "intervals", "interval_methods", "differences"):
            entry[part] = {**before.get(part, {}), **entry[part]}  # scores of other splits stay
        result["baselines"] = list({**known, baseline.name: entry}.values())
    return write_json(run.folder / "result.json", finite(result))


def _entry(split: str, baseline: ScoredBaseline) -> dict[str, Any]:
    figures = baseline.scores.figures
    differences = {
        name: {
            **tested.interval._asdict(),
            "p_value": tested.p_value,
            "test": tested.test,
            "verdict": verdict(tested.interval, tested.p_value, figures[name].better),
        }
        for name, tested in baseline.differences.items()
    }
    return {
        "name": baseline.name,
        "seconds": round(baseline.seconds, 3),
        "metrics": {split: {name: figure.value for name, figure in figures.items()}},
        "intervals": {split: {name: [figure.low, figure.high] for name, figure in figures.items()}},
        "interval_methods": {split: {name: figure.method for name, figure in figures.items()}},
        "differences": {split: differences},
    }
