import numpy as np
import pytest
from scipy import stats

from dl.errors import UserError
from dl.evaluation.intervals import bootstrap, ratio_interval, t_interval, wilson
from dl.evaluation.paired import (
    mcnemar,
    newcombe_paired,
    overlapping_folds,
    paired_permutation,
    paired_ratio,
    paired_t,
)
from dl.evaluation.spread import CLUSTERED, EFFECTIVE, STUDENT, WILSON, Spread


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_intervals_of_newcombe_1998_table_i(successes, trials, low, high):
    interval = wilson(successes, trials)
    np.testing.assert_allclose(interval, [successes / trials, low, high], atol=5e-5)


def test_wilson_stays_within_the_unit_interval():
    assert wilson(0, 10).low == 0
    assert wilson(10, 10).high == 1
    assert wilson(0, 0)[1:] == (0, 1)
    assert np.isnan(wilson(0, 0).estimate)


def test_the_t_interval_of_one_to_five():
    # t(0.975, 4) = 2.776445, s² = 5 / 2.
    half = 2.7764451 * np.sqrt(2.5 / 5)
    np.testing.assert_allclose(t_interval([1, 2, 3, 4, 5]), [3, 3 - half, 3 + half], rtol=1e-7)
    assert t_interval([0.25]) == (0.25, -np.inf, np.inf)
    assert t_interval([0.5, 0.5]) == (0.5, 0.5, 0.5)


def test_the_bootstrap_of_a_proportion_has_the_quantiles_of_the_binomial():
    is_right = np.arange(50) < 20
    interval = bootstrap(np.mean, is_right)
    expected = stats.binom(50, 0.4).ppf([0.025, 0.975]) / 50
    np.testing.assert_allclose(interval, [0.4, *expected], atol=0.021)  # of one example


def test_the_bootstrap_draws_the_same_examples_from_all_arrays():
    labels = np.arange(40)
    rows = np.stack([labels, labels + 1], -1)

    def gap(rows, labels):
        return (rows[:, 1] - labels).mean()

    assert bootstrap(gap, rows, labels, num_resamples=50) == (1, 1, 1)


def test_the_bootstrap_depends_on_its_seed_alone():
    values = np.sqrt(np.arange(40))
    first, again, other = (bootstrap(np.mean, values, num_resamples=50, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("only_a", "only_b", "p_value"),
    [
        (121, 59, 0.000004),
        (70, 59, 0.378688),
        (80, 59, 0.089452),
        (30, 60, 0.00206),
        (10, 30, 0.002221),
        (10, 10, 1.0),
    ],
)
def test_mcnemar_gives_the_p_values_that_statsmodels_is_tested_with(only_a, only_b, p_value):
    a = np.repeat([True, False, True, False], [101, only_b, only_a, 33])
    b = np.repeat([True, True, False, False], [101, only_b, only_a, 33])
    found = mcnemar(a, b)
    assert found[:2] == (only_a, only_b)
    np.testing.assert_allclose(found.p_value, p_value, atol=6e-7)


def test_classifiers_that_err_alike_do_not_differ():
    assert mcnemar([True, False], [True, False]) == (0, 0, 1.0)


def test_the_paired_t_test_of_students_sleep_data():
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    np.testing.assert_allclose(paired_t(first, second), 0.002833, atol=5e-7)


def test_the_paired_t_test_of_equal_differences():
    assert paired_t([0.5, 0.75], [0.5, 0.75]) == 1.0
    assert paired_t([1.5, 1.75], [0.5, 0.75]) == 0.0


def test_the_permutation_test_of_darwins_maize_as_fisher_counted_it():
    """Fisher 1935, 21: in 863 of the 2^15 ways the sum of the differences is at least theirs."""
    differences = np.array([49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48])
    p_value = paired_permutation(differences, np.zeros(15), num_resamples=2**15)
    np.testing.assert_allclose(p_value, 2 * 863 / 2**15, rtol=1e-12)
    drawn = paired_permutation(differences, np.zeros(15), num_resamples=4000)
    np.testing.assert_allclose(drawn, p_value, atol=0.015)  # some four standard deviations
    assert drawn == paired_permutation(differences, np.zeros(15), num_resamples=4000)


def test_the_permutation_test_cannot_fall_below_what_its_pairs_allow():
    assert paired_permutation([2, 3, 4, 5, 6], [1, 1, 1, 1, 1]) == 2 / 2**5


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda: wilson(11, 10), "successes=11 is not in [0, trials=10]"),
        (lambda: wilson(1, 10, confidence=95), "confidence=95 is not between 0 and 1"),
        (lambda: t_interval([]), "no mean"),
        (lambda: bootstrap(np.mean, [1.0]), "1 examples"),
        (lambda: bootstrap(np.mean, [1.0, 2.0], [1.0]), "lengths [1, 2]"),
        (lambda: mcnemar([True], [True, False]), "shapes (1,) and (2,)"),
        (lambda: paired_t([1.0], [2.0]), "1 pairs"),
        (lambda: paired_permutation([], []), "0 pairs"),
    ],
)
def test_mistakes_are_one_line(mistake, message):
    with pytest.raises(UserError) as raised:
        mistake()
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [
        ((1, 1, 7, 12), -0.507, -0.026),  # Fagerland, Lydersen & Laake 2014, airway hyper-responsiveness
        ((36, 12, 2, 0), 0.0569, 0.3404),  # Newcombe 1998, Statistics in Medicine 17, table II, method 10
    ],
)
def test_newcombe_paired_gives_published_intervals(counts, low, high):
    both, only_a, only_b, neither = counts
    interval = newcombe_paired(only_a, only_b, both, neither)
    assert interval.estimate == pytest.approx((only_a - only_b) / sum(counts))
    np.testing.assert_allclose(interval[1:], [low, high], atol=5e-4)


def test_newcombe_paired_does_not_end_at_the_estimate():
    interval = newcombe_paired(5, 0, 9_000, 995)
    assert interval.high > interval.estimate > interval.low


def test_what_is_counted_decides_the_interval():
    random = np.random.default_rng(0)
    right_N = (random.random(200) < 0.8).astype(float)
    interval, method = Spread.of(right_N, np.ones(200)).interval()
    assert method == WILSON
    assert interval == wilson(int(right_N.sum()), 200)
    assert (
        Spread.of(random.random(200), np.ones(200)).interval()[1] == STUDENT
    )  # errors below 1 count nothing
    interval, method = Spread.of(100 * right_N, np.ones(200)).interval()  # in percent
    assert method == STUDENT
    np.testing.assert_allclose(interval, t_interval(100 * right_N), rtol=1e-12)


def test_tokens_of_one_sequence_are_one_example():
    random = np.random.default_rng(0)
    weights_N = random.integers(5, 50, 300).astype(float)
    losses_N = random.gamma(2.0, 1.0, 300) * weights_N
    (estimate, low, high), method = Spread.of(losses_N, weights_N).interval()
    assert method == CLUSTERED
    # The delete-one jackknife of the ratio, which estimates the same variance another way.
    left_out = (losses_N.sum() - losses_N) / (weights_N.sum() - weights_N)
    deviation = np.sqrt(299 / 300 * ((left_out - left_out.mean()) ** 2).sum())
    half = stats.t.ppf(0.975, 299) * deviation
    np.testing.assert_allclose(
        [estimate, low, high], losses_N.sum() / weights_N.sum() + half * np.array([0, -1, 1]), rtol=2e-3
    )


def test_a_share_of_tokens_stays_within_the_unit_interval_and_widens_with_the_clusters():
    weights_N = np.full(40, 20.0)
    all_right = Spread.of(weights_N, weights_N).interval()
    assert all_right[1] == EFFECTIVE
    assert all_right[0].high == 1.0
    assert all_right[0].low == pytest.approx(wilson(40, 40).low)  # 40 sequences, not 800 tokens
    blocks = Spread.of(np.repeat([0.0, 20.0], 20), weights_N).interval()[0]
    alone = Spread.of(np.tile([0.0, 1.0], 400), np.ones(800)).interval()[0]
    assert blocks.high - blocks.low > 3 * (alone.high - alone.low)


def test_moments_add_up_over_batches():
    random = np.random.default_rng(0)
    totals_N, weights_N = random.normal(3, 1, 100), random.integers(1, 9, 100).astype(float)
    whole = Spread.of(totals_N, weights_N).interval()
    parts = Spread.of(totals_N[:30], weights_N[:30]) + Spread.of(totals_N[30:], weights_N[30:])
    np.testing.assert_allclose(parts.interval()[0], whole[0], rtol=1e-12)


@pytest.mark.parametrize("totals", [[np.nan, 1.0], [np.inf, 1.0], [1.0]])
def test_without_finite_values_of_two_examples_there_is_no_interval(totals):
    assert Spread.of(np.array(totals), np.ones(len(totals))).interval() is None


def test_the_interval_of_a_share_over_seeds_stays_within_the_unit_interval():
    assert t_interval([0.95, 0.99], is_share=True)[1:] == (t_interval([0.95, 0.99]).low, 1.0)
    assert ratio_interval(0.999, 1e-4, 50, 49, is_share=True).high <= 1.0


def test_a_paired_ratio_with_weights_of_one_is_students_paired_test():
    random = np.random.default_rng(0)
    a_N, b_N = random.normal(0, 1, (2, 50))
    found = paired_ratio(*(np.stack([x, np.ones(50)], -1) for x in (a_N, b_N)))
    np.testing.assert_allclose(found.interval, t_interval(a_N - b_N), rtol=1e-12)
    assert found.p_value == pytest.approx(paired_t(a_N, b_N), rel=1e-9)


def test_the_variance_over_folds_is_corrected_for_their_overlap():
    values = np.array([0.01, 0.03, 0.02, -0.01, 0.02])
    plain = t_interval(values)
    found = overlapping_folds(values, held_out_ratio=0.25)
    assert found.interval.estimate == pytest.approx(values.mean())
    widths = [one.high - one.low for one in (found.interval, plain)]
    assert widths[0] / widths[1] == pytest.approx(np.sqrt((1 / 5 + 1 / 4) / (1 / 5)))
    uncorrected = overlapping_folds(values, held_out_ratio=0.0)
    assert uncorrected.interval == pytest.approx(plain)
    assert uncorrected.p_value == pytest.approx(stats.ttest_1samp(values, 0.0).pvalue)
    assert overlapping_folds([0.1, 0.1], 0.1).p_value == 0.0
    assert overlapping_folds([0.0, 0.0], 0.1).p_value == 1.0
    with pytest.raises(UserError, match="differences has 1 folds"):
        overlapping_folds([0.1], 0.1)
