"""Metrics from the outcomes of examples: those of all probabilities, and of independent sources."""

import jax
import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn import metrics

from dl.evaluation import classification_figures
from dl.evaluation import outcome_figures as figures_of_outcomes
from dl.evaluation.calibration import Calibration, expected_calibration_error, reliability
from dl.evaluation.outcome_figures import confusions, coverage_curve, outcome_figures, top_k_curve
from dl.evaluation.outcomes import Outcomes

SIZE, NUM_CLASSES = 300, 30
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(SIZE, NUM_CLASSES)).astype(np.float32)
LABELS = RNG.integers(0, NUM_CLASSES - 1, SIZE).astype(np.int32)  # the last class has no example
LOGITS[np.arange(SIZE), LABELS] += 2
LOG_P = log_softmax(LOGITS, axis=-1)
OUTCOMES = jax.device_get(jax.jit(Outcomes.of)(LOG_P, LABELS))


def test_outcomes_are_those_of_numpy():
    order = np.argsort(-LOG_P, axis=1)
    np.testing.assert_array_equal(OUTCOMES.label, LABELS)
    np.testing.assert_array_equal(OUTCOMES.predicted, order[:, 0])
    np.testing.assert_array_equal(OUTCOMES.rank, np.argmax(order == LABELS[:, None], 1))
    np.testing.assert_array_equal(OUTCOMES.label_log_probability, LOG_P[np.arange(SIZE), LABELS])
    np.testing.assert_array_equal(OUTCOMES.predicted_log_probability, LOG_P.max(1))
    np.testing.assert_array_equal(OUTCOMES.runner_up_log_probability, np.sort(LOG_P, 1)[:, -2])
    one_hot = np.eye(NUM_CLASSES)[LABELS]
    brier = np.square(np.exp(np.float64(LOG_P)) - one_hot).sum(1)
    np.testing.assert_allclose(OUTCOMES.brier, brier, rtol=1e-5, atol=1e-7)


def test_they_equal_the_figures_of_all_probabilities():
    found, full = outcome_figures(OUTCOMES, NUM_CLASSES), classification_figures(LOG_P, LABELS)
    for name, figure in found.items():
        if name != "labelled":
            np.testing.assert_array_equal(figure, full[name], err_msg=name)
    np.testing.assert_array_equal(found["labelled"], full["confusion"].sum(1))
    areas = {f"{name}{mean}" for name in ("roc_auc", "average_precision") for mean in ("", "_macro")}
    assert full.keys() - found.keys() == {"confusion", *areas}


def test_they_are_those_of_scikit_learn_and_of_the_sums_over_batches(monkeypatch):
    monkeypatch.setattr(figures_of_outcomes, "_CHUNK", 64)  # the last chunk is padded
    found = outcome_figures(OUTCOMES, NUM_CLASSES)
    predicted, classes = LOG_P.argmax(1), np.arange(NUM_CLASSES)
    averaged = {"labels": classes, "average": "macro", "zero_division": 0}
    for name, expected in {
        "accuracy": metrics.accuracy_score(LABELS, predicted),
        "f1_macro": metrics.f1_score(LABELS, predicted, **averaged),
        "precision_macro": metrics.precision_score(LABELS, predicted, **averaged),
        "log_loss": metrics.log_loss(LABELS, softmax(np.float64(LOGITS), axis=-1), labels=classes),
        "top_5_accuracy": metrics.top_k_accuracy_score(LABELS, LOG_P, k=5, labels=classes),
    }.items():
        assert found[name] == pytest.approx(expected, rel=1e-6), name
    bins = Calibration.of(LOG_P, LABELS)
    np.testing.assert_array_equal(found["calibration_count"], bins.counts)
    np.testing.assert_allclose(found["calibration_confidence"], reliability(bins).confidence, rtol=1e-6)
    assert found["expected_calibration_error"] == pytest.approx(float(expected_calibration_error(bins)))


def test_confusions_are_the_cells_off_the_diagonal():
    found = confusions(OUTCOMES, NUM_CLASSES)
    matrix = metrics.confusion_matrix(LABELS, LOG_P.argmax(1), labels=np.arange(NUM_CLASSES))
    np.fill_diagonal(matrix, 0)
    np.testing.assert_array_equal(found.counts, matrix[found.label, found.predicted])
    assert len(found.counts) == (matrix > 0).sum()
    keys = list(zip(-found.counts, found.label, found.predicted, strict=True))
    assert keys == sorted(keys)


def test_curves_have_few_points_and_end_at_the_accuracy():
    accuracy = (LOG_P.argmax(1) == LABELS).mean()
    k, top = top_k_curve(OUTCOMES, NUM_CLASSES)
    expected = [metrics.top_k_accuracy_score(LABELS, LOG_P, k=n, labels=range(NUM_CLASSES)) for n in k]
    np.testing.assert_allclose(top, expected)
    assert top_k_curve(OUTCOMES, 3)[1].shape == (3,)
    share, right = coverage_curve(OUTCOMES, most=50)
    assert len(share) == 50
    assert (share[-1], right[-1]) == (1.0, pytest.approx(accuracy))
    most_confident = np.argsort(-LOG_P.max(1))[: round(share[20] * SIZE)]
    assert right[20] == pytest.approx((LOG_P.argmax(1) == LABELS)[most_confident].mean())


def test_the_memory_does_not_grow_with_the_square_of_the_classes():
    many = 1_000_000  # a matrix of as many classes does not fit on this machine
    found = outcome_figures(OUTCOMES, many)
    assert found["accuracy"] == outcome_figures(OUTCOMES, NUM_CLASSES)["accuracy"]
    assert len(confusions(OUTCOMES, many).counts) == len(confusions(OUTCOMES, NUM_CLASSES).counts)
