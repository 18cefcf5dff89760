import jax
import numpy as np
import pytest
from sklearn import metrics

from dl.evaluation import Regression
from dl.evaluation.regression import r2

measure, merge = jax.jit(Regression.of), jax.jit(Regression.merge)
RNG = np.random.default_rng(0)


def sums_over(predictions, targets, mask=None, num_batches=8):
    mask = np.ones(len(targets), bool) if mask is None else mask
    parts = [np.split(array, num_batches) for array in (predictions, targets, mask)]
    sums = measure(*(part[0] for part in parts))
    for batch in range(1, num_batches):
        sums = merge(sums, measure(*(part[batch] for part in parts)))
    return sums


@pytest.mark.parametrize("offset", [0.0, 1e4, -5e6])
def test_figures_over_batches_are_those_of_float64_however_far_from_zero(offset):
    targets = (offset + RNG.normal(size=64)).astype(np.float32)
    predictions = (targets + 0.5 * RNG.normal(size=64)).astype(np.float32)
    mask = RNG.random(64) < 0.7
    mask[:8] = mask[24:32] = False  # the first batch and the fourth
    exact = [array[mask].astype(np.float64) for array in (targets, predictions)]
    predictions[~mask] = np.nan
    targets[~mask] = np.inf
    sums = sums_over(predictions, targets, mask)
    np.testing.assert_allclose(sums.squared_error.compute(), metrics.mean_squared_error(*exact), rtol=1e-6)
    np.testing.assert_allclose(sums.absolute_error.compute(), metrics.mean_absolute_error(*exact), rtol=1e-6)
    np.testing.assert_allclose(r2(sums), metrics.r2_score(*exact), rtol=1e-6)
    np.testing.assert_allclose(sums.target_mean.high, exact[0].mean(), rtol=1e-6)
    assert sums.squared_error.count == mask.sum()


def test_each_dimension_of_a_target_has_its_own_figures():
    targets = RNG.normal(size=(64, 2)).astype(np.float32) * np.array([1, 100], np.float32)
    predictions = (targets + RNG.normal(size=(64, 2))).astype(np.float32)
    expected = metrics.r2_score(targets, predictions, multioutput="raw_values")
    np.testing.assert_allclose(r2(sums_over(predictions, targets)), expected, rtol=1e-5)


def test_r2_of_the_mean_is_zero_and_of_the_targets_one():
    targets = np.arange(8, dtype=np.float32)
    assert r2(sums_over(targets, targets)) == 1.0
    assert r2(sums_over(np.full(8, 3.5, np.float32), targets)) == 0.0


def test_constant_targets_are_predicted_rightly_or_not():
    targets = np.full(8, 0.1, np.float32)
    assert r2(sums_over(targets, targets)) == 1.0
    assert r2(sums_over(targets + 1, targets)) == 0.0


def test_r2_of_fewer_than_two_examples_is_undefined_and_errors_of_none_are_zero():
    one = np.arange(8) == 3
    sums = sums_over(np.ones(8, np.float32), np.zeros(8, np.float32), one)
    assert np.isnan(r2(sums))
    assert sums.squared_error.compute() == 1.0
    for nothing in (
        measure(np.ones(8), np.ones(8), np.zeros(8, bool)),
        measure(np.ones(0), np.ones(0)),
    ):
        assert np.isnan(r2(nothing))
        assert nothing.squared_error.compute() == nothing.absolute_error.compute() == 0
