"""Figures of a regression from its predictions, beside scikit-learn; their intervals by simulation."""

import numpy as np
import pytest
from sklearn import metrics

from dl.errors import UserError
from dl.evaluation.regression_figures import regression_figures


@pytest.mark.parametrize("shape", [(200,), (200, 1), (200, 3)])
def test_the_figures_are_those_of_scikit_learn(shape):
    random = np.random.default_rng(0)
    target = random.normal(size=shape) * 3 + 100
    output = (target + random.normal(size=shape)).astype(np.float32)
    found = regression_figures(output, target)
    expected = {
        "mean_absolute_error": metrics.mean_absolute_error(target, output),
        "root_mean_squared_error": np.sqrt(metrics.mean_squared_error(target, output)),
        "r_squared": metrics.r2_score(target, output),
    }
    assert {name: figure.value for name, figure in found.items()} == pytest.approx(expected, rel=1e-6)
    assert all(figure.low < figure.value < figure.high for figure in found.values())
    assert [figure.better for figure in found.values()] == ["min", "min", "max"]


def test_the_intervals_cover_what_they_state():
    random = np.random.default_rng(1)
    hits = np.zeros(3)
    for _ in range(1_000):
        target, error = random.normal(size=(2, 300))
        found = regression_figures(target + 0.5 * error, target)
        truth = (0.5 * np.sqrt(2 / np.pi), 0.5, 1 - 0.25)
        hits += [
            figure.low <= true <= figure.high for figure, true in zip(found.values(), truth, strict=True)
        ]
    assert (hits >= 930).all(), hits
    assert (hits <= 970).all(), hits


def test_what_is_undefined_is_nan_and_without_an_interval():
    constant = regression_figures([1.0, 2.0, 3.0], [5.0, 5.0, 5.0])
    assert np.isnan(constant["r_squared"].value)
    perfect = regression_figures([1.0, 2.0], [1.0, 2.0])
    assert (perfect["r_squared"].value, perfect["root_mean_squared_error"].value) == (1.0, 0.0)
    assert np.isnan([perfect["r_squared"].low, perfect["root_mean_squared_error"].high]).all()
    assert np.isnan(regression_figures([np.nan, 1.0], [1.0, 2.0])["r_squared"].value)
    assert np.isnan(regression_figures([1.0], [2.0])["r_squared"].low)


def test_shapes_that_differ_are_refused():
    with pytest.raises(UserError, match=r"\(3, 1\) and targets \(3,\)"):
        regression_figures(np.zeros((3, 1)), np.zeros(3))
    with pytest.raises(UserError):
        regression_figures([], [])
