import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from dl.data.images import affine
from dl.data.images.affine import affine_matrix, keras_affine

warp = jax.jit(affine.warp, static_argnames=("fill_mode", "cval"))

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


# SciPy's name of each mode; its own `constant` and `wrap` do not interpolate across the border.
SCIPY_MODES = {
    "constant": "grid-constant",
    "nearest": "nearest",
    "reflect": "reflect",
    "wrap": "grid-wrap",
}


@pytest.mark.parametrize("fill_mode", SCIPY_MODES)
def test_a_warp_equals_scipy(fill_mode):
    matrix, shift = np.asarray(affine_matrix(0.3, 2.2, 0.1)), np.array([0.7, -4.1])
    centre = np.array([4.0, 4.0])
    expected = np.stack(
        [
            ndimage.affine_transform(
                IMAGE[..., c],
                matrix,
                centre + shift - matrix @ centre,
                order=1,
                mode=SCIPY_MODES[fill_mode],
                cval=0.5,
            )
            for c in range(2)
        ],
        -1,
    )
    actual = warp(IMAGE, jnp.asarray(matrix), jnp.asarray(shift), fill_mode=fill_mode, cval=0.5)
    chex.assert_trees_all_close(actual, expected, atol=1e-5)


def test_outside_of_nearest_is_the_pixel_at_the_edge():
    moved = warp(IMAGE, jnp.eye(2), jnp.array([0.0, 3.0]), fill_mode="nearest")
    chex.assert_trees_all_close(moved[:, 6:], np.repeat(IMAGE[:, 8:], 3, axis=1), atol=1e-6)


def keras_transform(x, theta, tx, ty, shear, zx, zy, fill_mode):
    """Keras 3's `apply_affine_transform` for channels last, written down in NumPy and SciPy."""
    theta, shear = np.deg2rad(theta), np.deg2rad(shear)
    rotation = np.array([[np.cos(theta), -np.sin(theta), 0], [np.sin(theta), np.cos(theta), 0], [0, 0, 1]])
    translation = np.array([[1, 0, tx], [0, 1, ty], [0, 0, 1]])
    shearing = np.array([[1, -np.sin(shear), 0], [0, np.cos(shear), 0], [0, 0, 1]])
    matrix = functools.reduce(np.dot, [rotation, translation, shearing, np.diag([zx, zy, 1])])
    o_x, o_y = x.shape[0] / 2 - 0.5, x.shape[1] / 2 - 0.5
    there = np.array([[1, 0, o_x], [0, 1, o_y], [0, 0, 1]])
    back = np.array([[1, 0, -o_x], [0, 1, -o_y], [0, 0, 1]])
    matrix = there @ matrix @ back
    matrix = matrix[[1, 0, 2]][:, [1, 0, 2]]  # from (x, y) to (row, column)
    return np.stack(
        [
            ndimage.affine_transform(channel, matrix[:2, :2], matrix[:2, 2], order=1, mode=fill_mode)
            for channel in np.moveaxis(x, -1, 0)
        ],
        -1,
    )


@pytest.mark.parametrize(
    ("theta", "tx", "ty", "shear", "zx", "zy", "fill_mode"),
    [
        (40.0, 0.0, 0.0, 0.0, 1.0, 1.0, "nearest"),
        (0.0, 0.0, 0.0, 30.0, 1.0, 1.0, "nearest"),
        (0.0, 1.5, -2.0, 0.0, 0.8, 1.3, "reflect"),
        (-25.0, 1.5, -2.25, 17.0, 0.8, 1.3, "nearest"),
        (130.0, -3.0, 4.5, -40.0, 1.4, 0.6, "reflect"),
    ],
)
def test_the_affine_map_equals_keras(theta, tx, ty, shear, zx, zy, fill_mode):
    zoom, shift = jnp.array([zy, zx]), jnp.array([ty, tx])
    actual = warp(IMAGE, *keras_affine(theta, shift, shear, zoom), fill_mode=fill_mode)
    expected = keras_transform(IMAGE, theta, tx, ty, shear, zx, zy, fill_mode)
    chex.assert_trees_all_close(actual, expected, atol=1e-4)


def test_shear_is_in_degrees():
    matrix, _ = keras_affine(0.0, jnp.zeros(2), 30.0, jnp.ones(2))
    np.testing.assert_allclose(matrix, [[np.sqrt(0.75), 0], [-0.5, 1]], atol=1e-6)
    matrix, _ = keras_affine(0.0, jnp.zeros(2), 0.2, jnp.ones(2))
    assert abs(matrix - jnp.eye(2)).max() < 0.0036  # the sine of a fifth of a degree


def test_a_zoom_keeps_the_centre_of_an_image_that_is_not_square():
    image = np.random.default_rng(1).random((5, 9, 1)).astype(np.float32)
    zoomed = warp(jnp.asarray(image), *keras_affine(0.0, jnp.zeros(2), 0.0, jnp.array([2.0, 0.5])))
    np.testing.assert_allclose(zoomed[2, 4], image[2, 4], rtol=1e-5)
    np.testing.assert_allclose(zoomed[1::2, 0:9:2, 0], image[0::4, 2:7, 0], rtol=1e-5)
