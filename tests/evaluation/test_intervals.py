import numpy as np
import pytest
from scipy import stats

from dl.errors import UserError
from dl.evaluation.intervals import (
    bootstrap,
    mcnemar,
    paired_permutation,
    paired_t,
    t_interval,
    wilson,
)


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
    """Fisher 1935, §21: in 863 of the 2^15 ways the sum of the differences is at least theirs."""
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
