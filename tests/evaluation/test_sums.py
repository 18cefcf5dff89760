import math

import jax
import jax.numpy as jnp
import numpy as np

from dl.evaluation import Double, ExactMean
from dl.sharding import batch_sharding

RNG = np.random.default_rng(0)
VALUES = (RNG.normal(size=4096) * 10.0 ** RNG.uniform(-6, 4, 4096)).astype(np.float32)


def test_a_sum_is_the_exact_one_rounded_in_any_order_and_on_any_number_of_devices(mesh1, mesh8):
    expected = np.float32(math.fsum(VALUES.astype(np.float64)))
    total = jax.jit(Double.sum)
    for values in (VALUES, VALUES[::-1], RNG.permutation(VALUES), np.sort(VALUES)):
        for mesh in (mesh1, mesh8):
            assert total(jax.device_put(values, batch_sharding(mesh))).high == expected


def test_a_sum_over_batches_is_the_sum_over_everything():
    batches = [Double.sum(batch) for batch in np.split(VALUES, 8)]
    assert sum(batches[1:], batches[0]).high == np.float32(math.fsum(VALUES.astype(np.float64)))


def test_small_terms_are_not_lost_beside_a_large_one():
    total = Double.of(2.0**24) + Double.of(1.0) + Double.of(2.0**-10)
    assert (total + -Double.of(2.0**24)).high == 1.0 + 2.0**-10


def test_infinite_and_undefined_values_stay_so():
    for total in (Double.sum(jnp.array([1.0, jnp.inf, 2.0])), Double.of(jnp.inf) + Double.of(1.0)):
        assert (total.high, total.low) == (jnp.inf, 0)
    assert jnp.isnan(Double.sum(jnp.array([1.0, jnp.nan])).high)


def test_a_mean_passes_over_what_is_masked_even_when_it_is_nan():
    values_B2 = jnp.array([[1.0, 10.0], [jnp.nan, jnp.inf], [3.0, 30.0]])
    mean = ExactMean.of(values_B2, jnp.array([True, False, True]))
    np.testing.assert_array_equal(mean.compute(), [2.0, 20.0])
    assert mean.count == 2


def test_the_mean_of_nothing_is_zero():
    assert ExactMean.of(jnp.ones(3), jnp.zeros(3, bool)).compute() == 0.0
    assert ExactMean.of(jnp.ones(0)).compute() == 0.0


def test_examples_are_counted_beyond_the_integers_of_float32():
    many = ExactMean(Double.of(2.0**24), jnp.int32(2**24))
    merged = many.merge(ExactMean.of(jnp.ones(1)))
    assert merged.count == 2**24 + 1
    assert merged.compute() == 1.0
