import chex
import jax.numpy as jnp
import numpy as np
import pytest

from dl.data.images.decoding import resized, to_unit_range


def test_bytes_become_floats_between_zero_and_one():
    batch = to_unit_range({"image": jnp.array([0, 51, 255], jnp.uint8), "label": jnp.array([3])})
    np.testing.assert_allclose(batch["image"], [0.0, 0.2, 1.0], rtol=1e-6)
    assert batch["label"].dtype == jnp.int32


def test_resizing_keeps_images_of_the_right_size_and_halves_by_averaging_neighbours():
    batch = {"image": jnp.arange(16, dtype=jnp.uint8).reshape(1, 4, 4, 1)}
    chex.assert_trees_all_equal(resized(4, 4)(batch), to_unit_range(batch))
    twice = resized(8, 8)(batch)["image"]
    assert twice.shape == (1, 8, 8, 1)
    assert float(twice.mean()) == pytest.approx(7.5 / 255, rel=1e-5)
