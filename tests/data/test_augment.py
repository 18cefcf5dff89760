import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from dl.data.augment import affine_matrix, random_affine, warp
from dl.data.images import resized, to_unit_range

IMAGE = np.random.default_rng(0).random((9, 9, 2)).astype(np.float32)
STILL = jnp.zeros(2)


def test_the_identity_changes_nothing():
    chex.assert_trees_all_close(warp(IMAGE, affine_matrix(0.0, 1.0, 0.0), STILL), IMAGE, atol=1e-6)


def test_a_quarter_turn_equals_rot90():
    turned = warp(IMAGE, affine_matrix(jnp.pi / 2, 1.0, 0.0), STILL)
    chex.assert_trees_all_close(turned, np.rot90(IMAGE), atol=1e-5)


def test_a_whole_shift_equals_roll_in_the_interior():
    moved = warp(IMAGE, jnp.eye(2), jnp.array([2.0, -1.0]))
    chex.assert_trees_all_close(moved[:7, 1:], np.roll(IMAGE, (-2, 1), (0, 1))[:7, 1:], atol=1e-6)
    assert not moved[7:].any()


def test_a_warp_equals_scipy():
    matrix, shift = np.asarray(affine_matrix(0.3, 1.2, 0.1)), np.array([0.7, -1.1])
    centre = np.array([4.0, 4.0])
    offset = centre + shift - matrix @ centre
    expected = np.stack(
        [ndimage.affine_transform(IMAGE[..., c], matrix, offset, order=1) for c in range(2)], -1
    )
    actual = warp(IMAGE, jnp.asarray(matrix), jnp.asarray(shift))
    # scipy blends with the outside at the border; compare where all four neighbours are inside
    inside = ndimage.affine_transform(np.ones((9, 9)), matrix, offset, order=1) == 1
    chex.assert_trees_all_close(np.asarray(actual)[inside], expected[inside], atol=1e-5)


def test_random_affine_is_a_function_of_its_key_and_leaves_other_features_alone():
    augment = jax.jit(random_affine(rotate=0.2, zoom=0.1, shear=0.1, shift=2.0))
    example = {"image": jnp.asarray(IMAGE), "label": jnp.int32(3)}
    first, again, other = (augment(jax.random.key(k), example) for k in (0, 0, 1))
    chex.assert_trees_all_equal(first, again)
    assert (first["image"] != other["image"]).any()
    assert first["label"] == 3
    assert first["image"].shape == IMAGE.shape


def test_the_bounds_hold():
    augment = random_affine(shift=1.0)
    peak = jnp.zeros((9, 9, 1)).at[4, 4].set(1.0)
    images = jax.vmap(lambda key: augment(key, {"image": peak})["image"])(
        jax.random.split(jax.random.key(0), 200)
    )
    assert not images[:, :3].any()
    assert not images[:, :, 6:].any()
    mean_row = float((images[..., 0].sum((0, 2)) * jnp.arange(9)).sum() / images.sum())
    assert mean_row == pytest.approx(4.0, abs=0.15)


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
