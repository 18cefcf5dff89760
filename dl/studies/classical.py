"""Classical models on the data of an experiment, in a table with the network of a run."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dl.errors import UserError
from dl.evaluation.baselines import Classical
from dl.evaluation.baselines.classical import Fitted
from dl.evaluation.spread import Spread
from dl.experiment import Experiment
from dl.runs.baseline import baseline_lines
from dl.runs.folder import RunFolder
from dl.runs.tables import Table
from dl.stopping import FINAL_SPLIT
from dl.training.baseline import add_baseline, result_on_same_data
from dl.types import BaselineScores

_NAMES = {"accuracy": "accuracy", "mean_absolute_error": "mean absolute error", "mean_squared_error": "RMSE"}


@dataclasses.dataclass(frozen=True)
class ClassicalModels:
    """The classical models of an experiment.

    Attributes:
      models: the fitted models.
      scores: the scores of each, in the same order.
      best: the number of the model that is best on the validation examples.
      table: their metrics on the test split with 95 % intervals.
      lines: sentences about the number of examples, the best model and the network of the run.
    """

    models: Sequence[Fitted]
    scores: Sequence[BaselineScores]
    best: int
    table: Table
    lines: Sequence[str]


def measure_classical(
    experiment: Experiment,
    run: RunFolder | None = None,
    *,
    num_examples: int = 5_000,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> ClassicalModels:
    """Fits five classical models to the training split, and scores them on the other splits.

    Args:
      experiment: an experiment of classes or numbers.
      run: a finished run on the same data. The best model is added to its result.json.
      num_examples: number of training examples at most.
      seed: random seed of the models.
      say: called with lines of progress.

    Raises:
      UserError: the task is neither a classification nor a regression, the run has not finished or has other
        data, or the data have no split to score on.
    """
    kind = experiment.task.kind
    if kind is None or kind.name not in ("classification", "regression"):
        words = "of a kind that is not stated" if kind is None else f"a {kind.words}"
        raise UserError(f"the task is {words}; the baselines need a classification or a regression")
    data, result = experiment.data, {} if run is None else result_on_same_data(run, experiment)
    if not data.evaluations:
        raise UserError("the data have no split besides train; the baselines need one to be scored on")
    baseline = Classical(
        experiment.task.input_name, kind.target, kind.name == "regression", num_examples, seed
    )
    models = baseline.fit_all(data, lambda name: say(f"fitting: {name}"))
    scores = [baseline.scores(data, model) for model in models]
    best = max(range(len(models)), key=lambda k: models[k].validation)
    split = FINAL_SPLIT if FINAL_SPLIT in data.evaluations else next(iter(data.evaluations))
    lines = [
        f"Fitted to {baseline.num_rows(data):,} of {len(data.train):,} training examples. The best on "
        f"validation: {models[best].name}."
    ]
    if run is not None:
        seconds = sum(model.seconds for model in models)
        result = add_baseline(run, experiment, scores[best], seconds)
        own = [one for one in result["baselines"] if one["name"] == scores[best].name]
        lines += baseline_lines({**result, "baselines": own})
        lines.append(f"The result of {run.folder} has this baseline now; python -m dl report shows it.")
    return ClassicalModels(models, scores, best, _table(models, scores, best, split, result), lines)


def _table(
    models: Sequence[Fitted],
    scores: Sequence[BaselineScores],
    best: int,
    split: str,
    result: Mapping[str, Any],
) -> Table:
    metrics = list(scores[0].examples[split])
    rows = [
        [
            f"{model.name}{' *' if k == best else ''}",
            *(_cell(metric, one.examples[split][metric]) for metric in metrics),
            f"{model.seconds:.0f} s",
        ]
        for k, (model, one) in enumerate(zip(models, scores, strict=True))
    ]
    if result:
        found, bounds = result["metrics"].get(split, {}), result.get("intervals", {}).get(split, {})
        rows.append(["the network", *(_of_network(found, bounds, metric) for metric in metrics), ""])
    title = f"{split} split, 95 % intervals; * is the best on validation"
    return Table(title, ["model", *(_NAMES[metric] for metric in metrics), "time"], rows)


def _cell(metric: str, rows: np.ndarray) -> str:
    value = rows[:, 0].mean()
    interval = Spread.of(*rows.T).interval()
    bounds = None if interval is None else interval[0][1:]
    return _text(metric, float(value), bounds)


def _of_network(found: Mapping[str, Any], bounds: Mapping[str, Any], metric: str) -> str:
    value = found.get(metric)
    return "" if value is None else _text(metric, value, bounds.get(metric))


def _text(metric: str, value: float, bounds: Sequence[float] | None) -> str:
    if metric == "mean_squared_error":
        value, bounds = value**0.5, bounds and [max(bound, 0.0) ** 0.5 for bound in bounds]
    form = "{:.2%}" if metric == "accuracy" else "{:.4g}"
    text = form.format(value)
    return text if not bounds else f"{text} ({form.format(bounds[0])} to {form.format(bounds[1])})"
