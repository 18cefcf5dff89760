import jax
import numpy as np

from dl.evaluation import Calibration
from dl.evaluation.calibration import expected_calibration_error, reliability

calibrate = jax.jit(Calibration.of)
error_of, shown_by = jax.jit(expected_calibration_error), jax.jit(reliability)


def with_confidence(confidence):
    """Returns log-probabilities of two classes that predict class 0 with this probability."""
    p = np.asarray(confidence, np.float64)
    return np.log(np.stack([p, 1 - p], -1)).astype(np.float32)


def test_the_error_of_a_hand_computed_example():
    log_p = with_confidence([0.85, 0.85, 0.85, 0.65])
    labels = np.array([0, 0, 1, 0])
    sums = calibrate(log_p, labels)
    np.testing.assert_array_equal(sums.counts, [0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 3, 0, 0])
    np.testing.assert_array_equal(sums.hits, [0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 2, 0, 0])
    expected = 3 / 4 * abs(2 / 3 - 0.85) + 1 / 4 * abs(1 - 0.65)
    np.testing.assert_allclose(error_of(sums), expected, rtol=1e-6)
    shown = shown_by(sums)
    np.testing.assert_allclose(shown.accuracy[np.array([9, 12])], [1, 2 / 3], rtol=1e-6)
    np.testing.assert_allclose(shown.confidence[np.array([9, 12])], [0.65, 0.85], rtol=1e-6)
    assert np.isnan(shown.accuracy).sum() == np.isnan(shown.confidence).sum() == 13


def test_no_rounding_puts_a_confidence_beside_an_edge_into_another_bin():
    edges = np.arange(1, 15) / 15
    near = np.log(edges).astype(np.float32)
    log_p = np.concatenate([near, *(np.nextafter(near, np.float32(side)) for side in (-9, 0))])
    expected = np.searchsorted(edges, np.exp(log_p.astype(np.float64)))
    of_each = jax.jit(jax.vmap(Calibration.of))(log_p[:, None, None], np.zeros((len(log_p), 1), int))
    np.testing.assert_array_equal(of_each.counts.argmax(-1), expected)


def test_confidence_that_is_the_accuracy_has_no_error():
    sums = calibrate(with_confidence(np.full(1000, 0.8)), np.arange(1000) % 5 // 4)
    np.testing.assert_allclose(error_of(sums), 0, atol=1e-7)


def test_the_gap_of_many_confidences_does_not_cancel():
    sums = calibrate(with_confidence(np.full(50_000, 0.99999)), np.zeros(50_000, int))
    exact = 1 - np.exp(np.float64(with_confidence(0.99999)[0]))
    np.testing.assert_allclose(error_of(sums), exact, atol=6e-8)


def test_masked_examples_are_in_no_bin_and_batches_add_up():
    log_p = np.array([[-0.1, -2.0], [np.nan, np.nan], [-0.1, -2.0]], np.float32)
    labels = np.array([0, 0, -1])
    sums = calibrate(log_p, labels, np.array([True, False, True]))
    assert sums.counts.sum() == 1
    merged = sums.merge(sums)
    assert merged.counts.sum() == merged.hits.sum() == 2
    np.testing.assert_allclose(error_of(merged), 1 - np.exp(-0.1), rtol=1e-6)


def test_the_error_of_nothing_is_zero_and_of_a_nan_is_nan():
    log_p = with_confidence([0.9, 0.8])
    assert error_of(calibrate(log_p, np.zeros(2, int), np.zeros(2, bool))) == 0
    log_p[0] = np.nan
    assert np.isnan(error_of(calibrate(log_p, np.zeros(2, int))))
