import jax
import numpy as np
import pytest
from scipy import special

from dl.evaluation import Classification, classification
from dl.evaluation.classification import Counts

classify = jax.jit(Classification.of)
perplexity = jax.jit(classification.perplexity)
top_k_accuracy = jax.jit(classification.top_k_accuracy, static_argnums=1)


def of_matrix(score):
    return jax.jit(lambda confusion: score(Counts.of(confusion)))


accuracy, per_class = of_matrix(classification.accuracy), of_matrix(classification.per_class)
macro, micro = of_matrix(classification.macro), of_matrix(classification.micro)
weighted = of_matrix(classification.weighted)
# Rows are labels: class 0 has 3 examples, 1 has 1, 2 has 4. The scores below are counted by hand.
CONFUSION = np.array([[2, 1, 0], [0, 1, 0], [1, 0, 3]])


def log_softmax(logits):
    return special.log_softmax(np.asarray(logits, np.float32), axis=-1)


def test_precision_recall_and_f1_of_a_hand_counted_example():
    precision, recall, f1 = per_class(CONFUSION)
    np.testing.assert_allclose(precision, [2 / 3, 1 / 2, 1], rtol=1e-6)
    np.testing.assert_allclose(recall, [2 / 3, 1, 3 / 4], rtol=1e-6)
    np.testing.assert_allclose(f1, [2 / 3, 2 / 3, 6 / 7], rtol=1e-6)
    np.testing.assert_allclose(macro(CONFUSION), [13 / 18, 29 / 36, 46 / 63], rtol=1e-6)
    np.testing.assert_allclose(micro(CONFUSION), [3 / 4, 3 / 4, 3 / 4], rtol=1e-6)
    np.testing.assert_allclose(weighted(CONFUSION), [13 / 16, 3 / 4, 16 / 21], rtol=1e-6)
    np.testing.assert_allclose(accuracy(CONFUSION), 3 / 4, rtol=1e-6)


def test_a_class_that_never_occurs_scores_zero_and_counts_in_the_macro_mean():
    confusion = np.array([[2, 0, 0], [0, 2, 0], [0, 0, 0]])
    np.testing.assert_array_equal(per_class(confusion), [[1, 1, 0]] * 3)
    np.testing.assert_allclose(macro(confusion), [2 / 3] * 3, rtol=1e-6)
    np.testing.assert_array_equal(weighted(confusion), [1, 1, 1])


def test_scores_of_nothing_are_zero():
    sums = classify(log_softmax(np.ones((4, 3))), np.zeros(4, int), np.zeros(4, bool))
    for scores in (per_class, macro, micro, weighted):
        assert not np.any(scores(sums.confusion))
    assert accuracy(sums.confusion) == top_k_accuracy(sums.rank_counts, 2) == 0
    assert sums.log_loss.compute() == sums.brier.compute() == 0


def test_counts_near_the_largest_do_not_overflow():
    confusion = np.array([[2**30, 0], [2**30 - 1, 0]])
    np.testing.assert_allclose(per_class(confusion).f1, [2 / 3, 0], rtol=1e-6)


def test_sums_over_batches_pass_over_masked_examples_and_labels_that_are_no_class():
    logits = np.array([[5, 0, 0], [0, 5, 0], [0, 0, 5], [0, 5, 0], [np.nan, 0, 0], [5, 0, 0]])
    labels = np.array([0, 1, 1, -1, 3, 2])
    mask = np.array([True, True, True, True, True, False])
    parts = [classify(log_softmax(logits[i]), labels[i], mask[i]) for i in np.split(np.arange(6), 2)]
    sums = parts[0].merge(parts[1])
    np.testing.assert_array_equal(sums.confusion, [[1, 0, 0], [0, 1, 1], [0, 0, 0]])
    assert sums.rank_counts.sum() == sums.log_loss.count == sums.brier.count == 3
    assert np.isfinite(sums.brier.compute())


def test_uniform_predictions_have_their_closed_forms():
    sums = classify(log_softmax(np.zeros((4, 10))), np.arange(4))
    np.testing.assert_allclose(sums.log_loss.compute(), np.log(10), rtol=1e-6)
    np.testing.assert_allclose(perplexity(sums.log_loss.compute()), 10, rtol=1e-6)
    np.testing.assert_allclose(sums.brier.compute(), 0.9**2 + 9 * 0.1**2, rtol=1e-6)


def test_the_brier_score_of_sure_predictions_keeps_its_digits():
    log_p = np.log([[1 - 1e-6, 1e-6]]).astype(np.float32)
    brier = classify(log_p, np.zeros(1, int)).brier.compute()
    np.testing.assert_allclose(brier, 2e-12, rtol=1e-5)


def test_a_label_of_probability_zero_makes_the_loss_infinite_and_nothing_else():
    sums = classify(np.array([[0.0, -np.inf], [0.0, -np.inf]]), np.array([1, 0]))
    assert sums.log_loss.compute() == np.inf
    assert sums.brier.compute() == 1.0
    np.testing.assert_array_equal(sums.confusion, [[1, 0], [1, 0]])


@pytest.mark.parametrize("place", [0, 1])
def test_a_nan_is_seen_in_the_loss_and_is_no_hit(place):
    log_p = log_softmax(np.zeros((1, 3)))
    log_p[0, place] = np.nan
    sums = classify(log_p, np.zeros(1, int))
    assert np.isnan(sums.brier.compute())
    assert top_k_accuracy(sums.rank_counts, 1) == 0


def test_top_k_counts_the_label_among_the_k_best():
    logits = [[4, 3, 2, 1], [1, 2, 3, 4], [1, 4, 2, 3]]
    counts = classify(log_softmax(logits), np.array([0, 0, 3])).rank_counts
    np.testing.assert_allclose([top_k_accuracy(counts, k) for k in (1, 2, 3, 4)], [1 / 3, 2 / 3, 2 / 3, 1])


def test_labels_may_be_small_integers_and_classes_many():
    labels = np.array([255, 7], np.uint8)
    sums = classify(log_softmax(np.eye(300)[labels]), labels)
    assert sums.confusion[255, 255] == sums.confusion[7, 7] == 1


def test_one_class_is_always_right():
    sums = classify(np.zeros((3, 1)), np.zeros(3, int))
    assert accuracy(sums.confusion) == top_k_accuracy(sums.rank_counts, 1) == 1
    assert sums.log_loss.compute() == 0


def test_members_are_counted_each_for_itself():
    rng = np.random.default_rng(0)
    log_p_MBC, labels_MB = log_softmax(rng.normal(size=(2, 8, 3))), rng.integers(0, 3, (2, 8))
    together = jax.jit(jax.vmap(Classification.of))(log_p_MBC, labels_MB)
    for m in (0, 1):
        alone = classify(log_p_MBC[m], labels_MB[m])
        np.testing.assert_array_equal(together.confusion[m], alone.confusion)
        np.testing.assert_array_equal(together.rank_counts[m], alone.rank_counts)
        np.testing.assert_allclose(together.brier.total.high[m], alone.brier.total.high, rtol=1e-6)
