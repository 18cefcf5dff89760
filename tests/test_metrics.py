import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl.metrics import Mean, accuracy


def test_a_mean_over_parts_equals_the_mean_over_everything():
    values = np.arange(10, dtype=np.float32)
    merged = Mean.of(values[:3]).merge(Mean.of(values[3:]))
    assert merged.compute() == values.mean()


def test_masked_examples_do_not_count_even_when_they_are_nan():
    values_B = jnp.array([1.0, jnp.nan, 3.0])
    mask_B = jnp.array([True, False, True])
    assert Mean.of(values_B, mask_B).compute() == 2.0
    gradient = jax.grad(lambda v: Mean.of(v, mask_B).compute())(jnp.array([1.0, 5.0, 3.0]))
    np.testing.assert_array_equal(gradient, [0.5, 0.0, 0.5])


def test_the_mean_of_nothing_is_zero_not_nan():
    assert Mean.of(jnp.ones(2), jnp.zeros(2, bool)).compute() == 0.0


def test_weights_count_as_they_weigh_and_each_example_tells_what_it_adds():
    values_BT = jnp.array([[1.0, 2.0], [3.0, jnp.nan]])
    mean = Mean.of(values_BT, jnp.array([[1.0, 0.5], [0.25, 0.0]]))
    assert float(mean.compute()) == pytest.approx((1.0 + 1.0 + 0.75) / 1.75)
    np.testing.assert_array_equal(mean.each, [[2.0, 0.75], [1.5, 0.25]])
    of_examples = Mean.of(values_BT[:, :1] * jnp.ones((1, 2)), jnp.array([True, False]))
    assert (float(of_examples.total), float(of_examples.count)) == (2.0, 2.0)
    with pytest.raises(ValueError, match=r"a mask of shape \(3,\) does not fit"):
        Mean.of(values_BT, jnp.ones(3, bool))
    with pytest.raises(ValueError, match="better='lower' is not understood"):
        Mean.of(values_BT, better="lower")


def test_accuracy_counts_the_largest_logit():
    logits_BC = jnp.array([[2.0, 1.0], [0.0, 1.0], [5.0, 1.0]])
    mean = accuracy(logits_BC, jnp.array([0, 1, 1]), jnp.array([True, True, True]))
    assert (float(mean.total), float(mean.count)) == (2.0, 3.0)
