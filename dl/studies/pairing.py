"""Two runs on the same examples of one split: which test their metrics allow, and what it says.

Shapes: N examples.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dl.evaluation.intervals import Interval
from dl.evaluation.paired import mcnemar, newcombe_paired, paired_ratio

Predicted = Mapping[str, Any]
"""The fields of the `predictions.Kept` of one run."""

_OF_CLASSES = ("accuracy", "loss")  # what a classification's log-probabilities tell of each example
_OF_THE_DATA = ("index", "label", "target", "num_tokens")  # what must be the same on both sides


def pair_examples(
    a: Predicted, b: Predicted, metric: str, values: tuple[float, float], confidence: float
) -> tuple[str, Interval | None, float | None]:
    """Returns the test, the interval of b - a and p, or why there is none.

    Of zeros and ones, one for each example, McNemar's exact test and Newcombe's interval; of any other mean
    Student's over the examples.

    Args:
      a: predictions of the first run.
      b: of the other.
      metric: that is compared.
      values: of the metric, as the runs measured it.
      confidence: of the interval.
    """
    rows_a, rows_b = _rows(a, metric), _rows(b, metric)
    if rows_a is None or rows_b is None:
        return f"one seed, and {metric} is not known of each example", None, None
    if not _are_of_the_same(a, b) or rows_a.shape != rows_b.shape:
        return "the predictions are of different examples or labels", None, None
    ratios = [rows[:, 0].sum() / max(rows[:, 1].sum(), 1e-30) for rows in (rows_a, rows_b)]
    # Another figure, such as a loss with a penalty, is not what the predictions tell of each example.
    if not np.allclose(ratios, values, rtol=1e-3):
        return f"the {metric} is not the mean of what the predictions say", None, None
    num = len(rows_a)
    if not all(np.isin(rows[:, 0], (0, 1)).all() and (rows[:, 1] == 1).all() for rows in (rows_a, rows_b)):
        return f"paired t over {num:,} examples", *paired_ratio(rows_b, rows_a, confidence)
    each_a, each_b = rows_a[:, 0] > 0, rows_b[:, 0] > 0
    test = mcnemar(each_b, each_a)
    both = int((each_a & each_b).sum())
    neither = num - both - test.only_a - test.only_b
    interval = newcombe_paired(test.only_a, test.only_b, both, neither, confidence)
    words = f"McNemar, exact, {num:,} examples, {test.only_b:,} and {test.only_a:,} right in one only"
    return words, interval, test.p_value


def _rows(predicted: Predicted, metric: str) -> np.ndarray | None:
    """Returns what each example adds to a metric, total and weight, shape N × 2; None if nobody knows.

    Predictions of before tell of a classification's accuracy and loss alone, in the order of their index.
    """
    names = tuple(map(str, predicted.get("metric_names", ())))
    if metric in names:
        return np.asarray(predicted["example_metrics"], np.float64)[:, names.index(metric)]
    if metric not in _OF_CLASSES or names or "log_probabilities" not in predicted:
        return None
    order = np.argsort(predicted["index"], kind="stable")
    label_N, log_p_NC = (np.asarray(predicted[name])[order] for name in ("label", "log_probabilities"))
    rows_N = np.arange(len(label_N))
    each_N = log_p_NC.argmax(1) == label_N if metric == "accuracy" else -log_p_NC[rows_N, label_N]
    return np.stack([np.asarray(each_N, np.float64), np.ones(len(label_N))], -1)


def _are_of_the_same(a: Predicted, b: Predicted) -> bool:
    """Whether predictions are of the same rows with the same targets, as far as they tell."""
    orders = [np.argsort(one["index"], kind="stable") for one in (a, b)]
    for name in _OF_THE_DATA:
        if (name in a) != (name in b):
            return False
        if name in a and not np.array_equal(a[name][orders[0]], b[name][orders[1]]):
            return False
    return True
