import jax
import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from dl.evaluation import average_precision, one_vs_rest, roc_auc
from dl.evaluation.ranking import precision_recall_curve, roc_curve
from dl.sharding import batch_sharding, put

auc, precision_of = jax.jit(roc_auc), jax.jit(average_precision)
POSITIVE = np.array([False, False, True, True])


@pytest.mark.parametrize(
    ("scores", "area"), [([1, 2, 3, 4], 1.0), ([4, 3, 2, 1], 0.0), ([1, 1, 1, 1], 0.5), ([1, 3, 2, 4], 0.75)]
)
def test_the_area_under_the_roc_curve_is_the_fraction_of_pairs_in_order(scores, area):
    assert auc(np.array(scores), POSITIVE) == area


def test_with_ties_it_is_the_mann_whitney_statistic():
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 6, 300).astype(np.float32), rng.random(300) < 0.3
    u = stats.mannwhitneyu(scores[positive], scores[~positive]).statistic
    expected = u / (positive.sum() * (~positive).sum())
    np.testing.assert_allclose(auc(scores, positive), expected, rtol=1e-6)


def test_average_precision_of_hand_computed_examples():
    # By falling score: +, -, +, -: precision 1 at recall 1/2, then 2/3 at recall 1.
    np.testing.assert_allclose(precision_of(np.array([0.1, 0.4, 0.35, 0.8]), POSITIVE), 5 / 6, rtol=1e-6)
    np.testing.assert_allclose(precision_of(np.ones(4), POSITIVE), 1 / 2, rtol=1e-6)


def test_masked_scores_change_nothing_whatever_they_are(mesh8):
    rng = np.random.default_rng(1)
    scores, positive = np.round(rng.normal(size=64), 1).astype(np.float32), rng.random(64) < 0.5
    scores[:4] = [np.inf, -np.inf, np.inf, -np.inf]  # valid, as log p = -inf is
    mask = np.arange(64) < 40
    scores[40:] = rng.choice([np.nan, np.inf, -np.inf, scores[:40].max()], 24)
    on_devices = put((scores, positive, mask), batch_sharding(mesh8))
    finite = np.nan_to_num(scores[:40], posinf=99, neginf=-99)  # the same order, which scikit-learn accepts
    np.testing.assert_allclose(auc(*on_devices), metrics.roc_auc_score(positive[:40], finite), rtol=1e-6)
    expected = metrics.average_precision_score(positive[:40], finite)
    np.testing.assert_allclose(precision_of(*on_devices), expected, rtol=1e-6)


def test_zero_has_no_sign():
    assert auc(np.array([0.0, -0.0, -0.0, 0.0]), POSITIVE) == 0.5


@pytest.mark.slow
def test_more_pairs_than_an_int32_can_count():
    rng = np.random.default_rng(2)
    positive = rng.random(150_000) < 0.5
    scores = (rng.normal(size=150_000) + positive).round(2).astype(np.float32)
    np.testing.assert_allclose(auc(scores, positive), metrics.roc_auc_score(positive, scores), rtol=1e-6)
    expected = metrics.average_precision_score(positive, scores)
    np.testing.assert_allclose(precision_of(scores, positive), expected, rtol=1e-6)


def test_without_positives_or_negatives_the_areas_are_those_of_scikit_learn():
    scores = np.arange(4.0)
    for positive, precision in ((np.zeros(4, bool), 0.0), (np.ones(4, bool), 1.0)):
        assert np.isnan(auc(scores, positive))
        assert precision_of(scores, positive) == precision
    assert np.isnan(auc(scores, POSITIVE, np.zeros(4, bool)))
    assert precision_of(scores, POSITIVE, np.zeros(4, bool)) == 0.0
    assert np.isnan(auc(np.zeros(0), np.zeros(0, bool)))


def test_a_score_that_is_nan_is_not_ranked():
    scores = np.array([0.0, np.nan, 1.0, 2.0])
    assert np.isnan(auc(scores, POSITIVE))
    assert np.isnan(precision_of(scores, POSITIVE))


def test_one_vs_rest_takes_each_class_against_the_others():
    scores_NC = np.array([[3.0, 1.0, 0.0], [2.0, 2.0, 0.0], [1.0, 0.0, 0.0], [0.0, 3.0, 9.0]])
    areas = one_vs_rest(roc_auc, scores_NC, np.array([0, 1, 0, 1]))
    # Class 0: {3, 1} over {2, 0} in 3 of 4 pairs; class 1: {2, 3} over {1, 0} always; class 2 never occurs.
    np.testing.assert_array_equal(areas, [0.75, 1.0, np.nan])


def test_the_curves_enclose_the_areas():
    rng = np.random.default_rng(3)
    scores, positive, mask = rng.integers(0, 9, 80), rng.random(80) < 0.4, rng.random(80) < 0.8
    scores = np.where(mask, scores, np.nan)
    roc = roc_curve(scores, positive, mask)
    np.testing.assert_allclose(np.trapezoid(roc.y, roc.x), auc(scores, positive, mask), rtol=1e-6)
    assert (roc.x[0], roc.y[0], roc.x[-1], roc.y[-1]) == (0, 0, 1, 1)
    recall, precision, thresholds = precision_recall_curve(scores, positive, mask)
    area = precision_of(scores, positive, mask)
    np.testing.assert_allclose(-np.sum(np.diff(recall) * precision[:-1]), area, rtol=1e-6)
    assert len(thresholds) == len(recall) - 1


def test_curves_without_positives_or_without_examples_do_not_warn():
    assert np.isnan(roc_curve([0.1, 0.2], [False, False]).y).all()
    assert precision_recall_curve([0.1, 0.2], [False, False]).x[0] == 1
    for curve in (roc_curve, precision_recall_curve):
        assert curve([0.1], [True], [False]).x.size == 0
