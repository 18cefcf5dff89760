"""The baseline of an experiment: what it scores, and whether the network is better, for result.json."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dl.errors import UserError
from dl.evaluation.intervals import Interval
from dl.evaluation.paired import paired_examples, verdict
from dl.evaluation.spread import Spread
from dl.experiment import Experiment
from dl.runs.folder import RunFolder
from dl.runs.log import finite
from dl.runs.predictions import read_predictions
from dl.stopping import FINAL_SPLIT
from dl.system.json_files import write_json
from dl.types import BaselineScores


def measure_baseline(
    experiment: Experiment,
    result: dict[str, Any],
    examples: Mapping[str, np.ndarray],
    tell: Callable[[str], None],
) -> None:
    """Computes the baseline, and adds it to the content of result.json as the first of `baselines`.

    A baseline has the name, the time in seconds, `metrics`, `intervals` and `interval_methods` by split as in
    result.json, and `differences` by split and metric: the network minus the baseline (`estimate`, `low`,
    `high`), `p_value`, `test`, and `verdict`. The verdict is that on the network: `better` or `worse` only if
    the 95 % interval excludes zero and the test rejects, else `no difference shown` or `not tested`.

    A baseline that fails costs only itself: `warnings` of the result state the reason.

    Args:
      experiment: the experiment that was trained.
      result: the content of result.json, which is changed in place.
      examples: for each metric of the final split, total and weight of each example, shape N × 2. Several
        seeds have a leading axis.
      tell: called with one line of text about a failure.
    """
    if experiment.baseline is None:
        return
    start = time.monotonic()
    try:
        scores = experiment.baseline(experiment.data)
        seconds = time.monotonic() - start
        result["baselines"] = [_entry(experiment, scores, seconds, result, examples)]
    except Exception as error:
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        warning = f"the baseline was not computed: {(reason.splitlines() or [''])[0][:300]}"
        result.setdefault("warnings", []).append(warning)
        tell(f"WARNING: {warning}")


def add_baseline(
    run: RunFolder, experiment: Experiment, scores: BaselineScores, seconds: float
) -> dict[str, Any]:
    """Adds a baseline to result.json of a finished run, and returns its content; see `measure_baseline`.

    A baseline of the same name is replaced. The report and `compare` show all of them.

    Args:
      run: the folder of the run.
      experiment: the experiment of the run, or another one on the same data.
      scores: what the baseline adds to each metric.
      seconds: the time that the baseline took.

    Raises:
      UserError: the run has not finished, has other data, or the folder cannot be written.
    """
    result = result_on_same_data(run, experiment)
    examples: Mapping[str, np.ndarray] = {}
    if run.predictions_path.exists():
        kept = read_predictions(run.predictions_path)
        if kept.split == FINAL_SPLIT and len(kept.metric_names):
            examples = {name: kept.example_metrics[:, k] for k, name in enumerate(kept.metric_names)}
    entry = _entry(experiment, scores, seconds, result, examples)
    others = [one for one in result.get("baselines", ()) if one["name"] != scores.name]
    result["baselines"] = [*others, entry]
    return write_json(run.folder / "result.json", finite(result))


def result_on_same_data(run: RunFolder, experiment: Experiment) -> dict[str, Any]:
    """Returns the content of result.json of a finished run on the data of an experiment.

    Raises:
      UserError: the run has not finished, or has other data.
    """
    result = run.finished_result()
    checksum, known = experiment.data.identity.checksum, result.get("dataset", {}).get("checksum")
    if checksum != known:
        raise UserError(
            f"{run.folder} has other data (sha256 {str(known)[:12]}) than the baseline (sha256 "
            f"{checksum[:12]}); give the options of the run"
        )
    return result


def _entry(
    experiment: Experiment,
    scores: BaselineScores,
    seconds: float,
    result: Mapping[str, Any],
    examples: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """Returns a baseline in the form of result.json."""
    _check(scores, experiment)
    return {
        "name": scores.name,
        "seconds": round(seconds, 3),
        **_summarize(scores),
        "differences": _differences(scores, result, examples),
    }


def _check(scores: BaselineScores, experiment: Experiment) -> None:
    for split, of_split in scores.examples.items():
        size = len(experiment.data.evaluations[split])
        for metric, rows in of_split.items():
            if np.shape(rows) != (size, 2):
                raise UserError(
                    f"the baseline has {split} {metric} of shape {np.shape(rows)}; expected total and weight "
                    f"of each example, ({size}, 2)"
                )


def _summarize(scores: BaselineScores) -> dict[str, Any]:
    found: dict[str, Any] = {"metrics": {}, "intervals": {}, "interval_methods": {}}
    for split, of_split in scores.examples.items():
        for one in found.values():
            one[split] = {}
        for metric, rows in of_split.items():
            total, weight = np.asarray(rows, np.float64).sum(0)
            found["metrics"][split][metric] = float(total / weight)
            interval = Spread.of(*np.asarray(rows).T).interval()
            if interval is not None:
                (_, low, high), method = interval
                found["intervals"][split][metric] = [low, high]
                found["interval_methods"][split][metric] = method
    return found


def _differences(
    scores: BaselineScores, result: Mapping[str, Any], examples: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for split, of_split in scores.examples.items():
        for metric, rows in of_split.items():
            value = result["metrics"].get(split, {}).get(metric)
            if value is None:
                continue
            bounds = result.get("intervals", {}).get(split, {}).get(metric)
            of_network = examples.get(metric) if split == FINAL_SPLIT else None
            better = result["better"].get(metric)
            found.setdefault(split, {})[metric] = _difference(value, bounds, of_network, rows, better)
    return found


def _difference(
    value: float,
    bounds: list[float] | None,
    of_network: np.ndarray | None,
    rows: np.ndarray,
    better: str | None,
) -> dict[str, Any]:
    """Returns the difference of a metric, the network minus the baseline, and the verdict on the network."""
    rows = np.asarray(rows, np.float64)
    total, weight = rows.sum(0)
    reference = float(total / weight)
    estimate = float(value) - reference
    interval, p_value, test = None, None, "no values of each example to pair"
    if of_network is None:
        pass
    elif not np.array_equal(of_network[..., 1], np.broadcast_to(rows[:, 1], of_network.shape[:-1])):
        test = "the network and the baseline count different examples or tokens"
    elif of_network.ndim == 3:
        test = f"Student over {len(of_network)} seeds; the baseline is taken as exact"
        if bounds is not None:
            interval = Interval(estimate, *(bound - reference for bound in bounds))
    else:
        test, interval, p_value = paired_examples(np.asarray(of_network, np.float64), rows)
    low, high = (None, None) if interval is None else interval[1:]
    return {
        "estimate": estimate,
        "low": low,
        "high": high,
        "p_value": p_value,
        "test": test,
        "verdict": verdict(interval, p_value, better),
    }
