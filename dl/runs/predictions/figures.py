"""Metrics that are computed from kept predictions, and the check that they agree with those of the run.

Shapes: N examples.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from dl.errors import UserError
from dl.evaluation.figure import Figure
from dl.evaluation.language import language_figures
from dl.evaluation.multi_label import multi_label_figures
from dl.evaluation.regression_figures import regression_figures
from dl.experiment import Experiment
from dl.runs.predictions.kept import (
    ClassificationOutcomes,
    Kept,
    MultiLabel,
    Predictions,
    Reconstruction,
    Regression,
)
from dl.runs.predictions.kept_tokens import LanguageModel, MaskedLanguageModel, SequenceToSequence, Tokens

# The model is compiled separately for metrics and for predictions, and may compute in 16 bits. So logits that
# differ by less than this may be ordered differently, and a mean may differ by this fraction of its value.
TIE = 0.05
RELATIVE_TOLERANCE = 0.02
ABSOLUTE_TOLERANCE = 1e-4
# Allowed difference between the means over a sample and over the split, in standard errors.
SAMPLING_ERRORS = 6.0


class Disagreement(UserError):
    """The metrics of a run disagree with its kept predictions."""


def figures_of(
    predictions: Kept, tell: Callable[[str], None] = lambda line: None, num_bytes: int | None = None
) -> dict[str, Figure]:
    """Returns metrics with intervals that the loss does not compute, such as R² of a regression.

    It never raises an error: metrics that cannot be computed are left out.

    Args:
      predictions: the predictions for one split.
      tell: called with one line of text if metrics cannot be computed.
      num_bytes: for a language model, the number of bytes that its counted tokens stand for in the split.
        `None` means that it is not known. Then there are no bits per byte.
    """
    try:
        with np.errstate(all="ignore"):
            if isinstance(predictions, LanguageModel):
                return _language_figures(predictions, num_bytes)
            return _figures(predictions)
    except Exception as error:
        brief = (f"{type(error).__name__}: {error}".splitlines() or [""])[0][:200]
        tell(f"no more figures of {predictions.split} could be computed ({brief})")
        return {}


@functools.singledispatch
def _figures(predictions: Kept) -> dict[str, Figure]:
    return {}


@_figures.register
def _(predictions: Regression) -> dict[str, Figure]:
    figures = regression_figures(predictions.output, predictions.target)
    return {name: figures[name] for name in ("root_mean_squared_error", "r_squared")}


@_figures.register
def _(predictions: MultiLabel) -> dict[str, Figure]:
    return multi_label_figures(predictions.log_odds, predictions.label).overall


@_figures.register(MaskedLanguageModel)
@_figures.register(SequenceToSequence)
def _(predictions: Tokens) -> dict[str, Figure]:
    figures = language_figures(predictions.loss, predictions.num_right, predictions.num_tokens)
    return {"perplexity": figures["perplexity"]}


def _language_figures(predictions: LanguageModel, num_bytes: int | None) -> dict[str, Figure]:
    sums = predictions.loss, predictions.num_right, predictions.num_tokens
    # The bytes are those of the whole split.
    figures = language_figures(*sums, num_bytes if predictions.is_whole else None)
    return {name: figures[name] for name in ("perplexity", "bits_per_byte") if name in figures}


FIGURE_UNITS = {
    "root_mean_squared_error": "units of the target",
    "r_squared": "share of the variance",
    "f1_micro": "F1",
    "f1_macro": "F1",
    "average_precision_macro": "average precision",
    "perplexity": "equally likely tokens",
    "bits_per_byte": "bits a byte",
}
"""The units of what `figures_of` returns."""


def add_to_result(
    experiment: Experiment, result: dict[str, Any], predictions: Kept, tell: Callable[[str], None]
) -> None:
    """Adds the metrics that are computed from the predictions to the content of result.json.

    They come with their intervals, directions and units. `disagreement` is added if `check_agreement` finds
    one. It never raises an error.

    Args:
      experiment: the experiment of the run.
      result: the content of result.json, which is changed in place.
      predictions: the predictions of the variables that the run ended with.
      tell: called with one line of text if something cannot be computed.
    """
    split = predictions.split
    measured = dict(result["metrics"].get(split, {}))
    num_bytes = getattr(experiment.data, "num_bytes", {}).get(split)
    figures = figures_of(predictions, tell, num_bytes)
    # A metric of the loss function has priority.
    new = {name: figure for name, figure in figures.items() if name not in measured}
    add_figures(result, split, new, FIGURE_UNITS)
    try:
        check_agreement(experiment, measured, predictions)
    except Disagreement as disagreement:
        result["disagreement"] = str(disagreement)
    except Exception as error:
        brief = (f"{type(error).__name__}: {error}".splitlines() or [""])[0][:200]
        tell(f"the predictions of {split} could not be compared with what was measured ({brief})")


def add_figures(
    result: dict[str, Any], split: str, figures: Mapping[str, Figure], units: Mapping[str, str]
) -> None:
    """Adds metrics of a split to the content of result.json: values, intervals, directions and units."""
    for name, figure in figures.items():
        result["metrics"].setdefault(split, {})[name] = figure.value
        result.setdefault("better", {})[name] = figure.better
        result.setdefault("units", {})[name] = units[name]
        if figure.method:
            result.setdefault("intervals", {}).setdefault(split, {})[name] = [figure.low, figure.high]
            result.setdefault("interval_methods", {}).setdefault(split, {})[name] = figure.method


class _Recomputed(NamedTuple):
    """The contribution of each example to a metric, from its predictions.

    Attributes:
      total: the total of each example, shape N. The metric is Σ total / Σ weight.
      weight: the weight of each example, shape N.
      slack: the absolute difference in the mean that rounding may cause.
    """

    total: np.ndarray
    weight: np.ndarray
    slack: float


def check_agreement(experiment: Experiment, metrics: Mapping[str, float], predictions: Kept) -> None:
    """Compares the metrics of a run with the same metrics of its kept predictions.

    For a task without a kind, only `accuracy` is compared, if it is a proportion. Values that are not finite
    and labels that are distributions are not compared.

    Args:
      experiment: the experiment of the run.
      metrics: the metrics of the split of the predictions.
      predictions: the predictions of the same variables.

    Raises:
      Disagreement: the metrics differ by more than rounding and sampling explain.
    """
    kind = experiment.task.kind
    recomputed = _recompute(predictions)
    if (
        isinstance(predictions, Predictions | ClassificationOutcomes)
        and "target" in experiment.data.evaluations[predictions.split].spec
    ):
        return
    if kind is None:
        recomputed = {name: value for name, value in recomputed.items() if name == "accuracy"}
        if not 0 <= metrics.get("accuracy", 0.0) <= 1:
            return
    elif kind.units.get("loss") == "squared error" and "mean_squared_error" in recomputed:
        recomputed["loss"] = recomputed["mean_squared_error"]
    for name, (total_N, weight_N, slack) in recomputed.items():
        measured = float(metrics.get(name, np.nan))
        count = weight_N.sum()
        kept = float(total_N.sum() / count) if count > 0 else np.nan
        if not (np.isfinite(measured) and np.isfinite(kept)):
            continue
        tolerance = slack + ABSOLUTE_TOLERANCE + RELATIVE_TOLERANCE * max(abs(kept), abs(measured))
        if not predictions.is_whole:
            deviation_N = (total_N - kept * weight_N) / weight_N.mean()
            tolerance += SAMPLING_ERRORS * float(deviation_N.std()) / np.sqrt(len(total_N))
        if abs(measured - kept) > tolerance:
            raise Disagreement(
                f"the run measured {name} {measured:.4g} on {predictions.split}, but its kept predictions "
                f"have {kept:.4g}; do not trust either value; check what the loss and "
                "Experiment.preprocess make "
                "of labels and inputs, and check predict of the Task"
            )


@functools.singledispatch
def _recompute(predictions: Kept) -> dict[str, _Recomputed]:
    return {}


@_recompute.register(Predictions)
@_recompute.register(ClassificationOutcomes)
def _(predictions: Predictions | ClassificationOutcomes) -> dict[str, _Recomputed]:
    outcomes = predictions.outcomes
    with np.errstate(invalid="ignore"):  # two infinite log-probabilities
        is_tie_N = outcomes.predicted_log_probability - outcomes.runner_up_log_probability < TIE
    return {
        "accuracy": _plain(np.asarray(outcomes.is_right), float(is_tie_N.mean())),
        "loss": _plain(-np.asarray(outcomes.label_log_probability), 0.01),
    }


@_recompute.register
def _(predictions: MultiLabel) -> dict[str, _Recomputed]:
    log_odds_NC, is_label_NC = predictions.log_odds.astype(np.float64), predictions.label > 0
    is_right_NC = (log_odds_NC > 0) == is_label_NC
    is_tie_NC = np.abs(log_odds_NC) < TIE
    loss_NC = np.logaddexp(0, np.where(is_label_NC, -log_odds_NC, log_odds_NC))
    return {
        "loss": _plain(loss_NC.mean(1), 0.01),
        "label_accuracy": _plain(is_right_NC.mean(1), is_tie_NC.mean()),
        "exact_match": _plain(is_right_NC.all(1), is_tie_NC.any(1).mean()),
    }


@_recompute.register
def _(predictions: Regression) -> dict[str, _Recomputed]:
    error_ND = predictions.output.astype(np.float64) - predictions.target
    return {
        "mean_absolute_error": _plain(np.abs(error_ND).mean(1)),
        "mean_squared_error": _plain(np.square(error_ND).mean(1)),
    }


@_recompute.register
def _(predictions: Reconstruction) -> dict[str, _Recomputed]:
    return {"mean_squared_error": _plain(predictions.error)}


@_recompute.register(LanguageModel)
@_recompute.register(Tokens)
def _(predictions: LanguageModel | Tokens) -> dict[str, _Recomputed]:
    weight_N = predictions.num_tokens.astype(np.float64)
    return {
        "loss": _Recomputed(predictions.loss.astype(np.float64), weight_N, 0.01),
        "accuracy": _Recomputed(predictions.num_right.astype(np.float64), weight_N, 0.01),
    }


@_recompute.register
def _(predictions: SequenceToSequence) -> dict[str, _Recomputed]:
    is_counted_N = predictions.num_tokens > 0
    is_right_N = is_counted_N & (predictions.num_right == predictions.num_tokens)
    exact = _Recomputed(is_right_N.astype(np.float64), is_counted_N.astype(np.float64), 0.01)
    return {**_recompute.dispatch(Tokens)(predictions), "exact_match": exact}


def _plain(values_N: np.ndarray, slack: float = 0.0) -> _Recomputed:
    return _Recomputed(np.asarray(values_N, np.float64), np.ones(len(values_N)), float(slack))
