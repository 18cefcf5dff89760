"""Figures of a multi-label classifier, beside scikit-learn; their intervals by simulation."""

import numpy as np
import pytest
from scipy.special import expit
from sklearn import metrics

from dl.errors import UserError
from dl.evaluation.multi_label import multi_label_figures


def draw(size, num_labels, seed):
    random = np.random.default_rng(seed)
    log_odds = random.normal(size=(size, num_labels)).astype(np.float32)
    label = random.random((size, num_labels)) < expit(1.5 * log_odds - 0.5)
    return log_odds, label.astype(np.int32)


@pytest.mark.parametrize("num_labels", [1, 4])
def test_the_figures_are_those_of_scikit_learn(num_labels):
    log_odds, label = draw(150, num_labels, 0)
    log_odds = log_odds.round(1)  # with ties
    found = multi_label_figures(log_odds, label)
    predicted = log_odds > 0
    keywords = {"zero_division": 0, "average": None}
    if num_labels == 1:
        keywords = {"zero_division": 0, "average": None, "labels": [1]}
    for name in ("precision", "recall", "f1"):
        expected = getattr(metrics, f"{name}_score")(label, predicted, **keywords)
        np.testing.assert_allclose(getattr(found, name), expected, rtol=1e-6)
    areas = [metrics.average_precision_score(label[:, c], log_odds[:, c]) for c in range(num_labels)]
    np.testing.assert_allclose(found.average_precision, areas, rtol=1e-5)
    counts = label.astype(bool) & predicted
    micro = 2 * counts.sum() / (label.sum() + predicted.sum())
    assert found.overall["f1_micro"].value == pytest.approx(micro)
    assert found.overall["f1_macro"].value == pytest.approx(found.f1.mean())
    assert found.overall["average_precision_macro"].value == pytest.approx(np.mean(areas), rel=1e-5)
    assert all(0 <= figure.low < figure.value < figure.high <= 1 for figure in found.overall.values())


@pytest.mark.slow
def test_the_intervals_cover_what_they_state():
    log_odds, label = draw(100_000, 3, 1)
    truth = {
        "f1_micro": metrics.f1_score(label, log_odds > 0, average="micro"),
        "f1_macro": metrics.f1_score(label, log_odds > 0, average="macro"),
        "average_precision_macro": metrics.average_precision_score(label, log_odds, average="macro"),
    }
    hits = dict.fromkeys(truth, 0)
    for seed in range(200):
        for name, figure in multi_label_figures(*draw(200, 3, seed + 2)).overall.items():
            hits[name] += figure.low <= truth[name] <= figure.high
    assert all(182 <= count <= 199 for count in hits.values()), hits  # 95 % ± 2.6 standard errors


def test_a_label_that_nobody_has_and_nobody_predicts_has_figures_of_zero():
    found = multi_label_figures(np.full((5, 2), -1.0), np.zeros((5, 2)))
    assert found.f1.tolist() == found.average_precision.tolist() == [0.0, 0.0]
    assert np.isnan(found.overall["f1_macro"].low)


def test_a_nan_makes_the_area_nan_and_predicts_nothing():
    log_odds = np.array([[1.0], [np.nan], [-1.0]], np.float32)
    found = multi_label_figures(log_odds, np.array([[1], [1], [0]]))
    assert np.isnan(found.average_precision[0])
    assert found.recall[0] == 0.5


@pytest.mark.parametrize(
    ("log_odds", "label"),
    [
        (np.zeros((3, 2)), np.zeros(3)),
        (np.zeros((3, 2)), np.full((3, 2), 2)),
        (np.zeros((0, 2)), np.zeros((0, 2))),
    ],
)
def test_mistakes_are_named(log_odds, label):
    with pytest.raises(UserError):
        multi_label_figures(log_odds, label)
