"""Paired tests of two runs on the same examples of one split.

Shapes: N examples.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dl.evaluation.intervals import Interval
from dl.evaluation.paired import paired_examples

Predicted = Mapping[str, Any]
"""The fields of the `predictions.Kept` of one run."""

_OF_CLASSES = ("accuracy", "loss")  # metrics that follow from the predictions of a classification
_OF_THE_DATA = ("index", "label", "target", "num_tokens")  # arrays that must be equal on both sides


def pair_examples(
    a: Predicted, b: Predicted, metric: str, values: tuple[float, float], confidence: float
) -> tuple[str, Interval | None, float | None]:
    """Returns the name of the test, the interval of b - a and the p-value, or why there is no test.

    `evaluation.paired.paired_examples` chooses the test.

    Args:
      a: predictions of the first run.
      b: predictions of the other run.
      metric: the metric that is compared.
      values: the values of the metric that the runs measured.
      confidence: the confidence level of the interval, such as 0.95.
    """
    rows_a, rows_b = _rows(a, metric), _rows(b, metric)
    if rows_a is None or rows_b is None:
        return f"one seed, and {metric} is not known of each example", None, None
    if not _are_of_the_same(a, b) or rows_a.shape != rows_b.shape:
        return "the predictions are of different examples or labels", None, None
    ratios = [rows[:, 0].sum() / max(rows[:, 1].sum(), 1e-30) for rows in (rows_a, rows_b)]
    # Other metrics, such as a loss with a penalty, do not follow from the predictions.
    if not np.allclose(ratios, values, rtol=1e-3):
        return f"the {metric} is not the mean of what the predictions say", None, None
    tested = paired_examples(rows_b, rows_a, confidence)
    return tested.test, tested.interval, tested.p_value


def _rows(predicted: Predicted, metric: str) -> np.ndarray | None:
    """Returns total and weight of each example for a metric, shape N × 2; `None` if they are not known.

    Predictions without the metrics of each example, as those of older versions or of very large splits, give
    only accuracy and loss of a classification, in the order of their index.
    """
    names = tuple(map(str, predicted.get("metric_names", ())))
    if metric in names:
        return np.asarray(predicted["example_metrics"], np.float64)[:, names.index(metric)]
    if metric not in _OF_CLASSES or names:
        return None
    if "log_probabilities" in predicted:
        label_N, log_p_NC = np.asarray(predicted["label"]), np.asarray(predicted["log_probabilities"])
        guess_N, label_log_p_N = log_p_NC.argmax(1), log_p_NC[np.arange(len(label_N)), label_N]
    elif "label_log_probability" in predicted:
        label_N, guess_N = predicted["label"], predicted["predicted"]
        label_log_p_N = predicted["label_log_probability"]
    else:
        return None
    each_N = guess_N == label_N if metric == "accuracy" else -label_log_p_N
    order = np.argsort(predicted["index"], kind="stable")
    return np.stack([np.asarray(each_N[order], np.float64), np.ones(len(label_N))], -1)


def _are_of_the_same(a: Predicted, b: Predicted) -> bool:
    """Whether two predictions have the same rows and targets, as far as these are known."""
    orders = [np.argsort(one["index"], kind="stable") for one in (a, b)]
    for name in _OF_THE_DATA:
        if (name in a) != (name in b):
            return False
        if name in a and not np.array_equal(a[name][orders[0]], b[name][orders[1]]):
            return False
    return True
