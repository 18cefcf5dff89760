import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl.data.images.image_data_generator import image_data_generator

# Each pixel holds its own place, from the centre: what is at the centre of an augmented image tells the map.
SIZE = np.array([13, 17])
CENTRE = (SIZE - 1) // 2
PLACES = np.stack(np.meshgrid(*(np.arange(n) - n // 2 for n in SIZE), indexing="ij"), -1)
KEYS = jax.random.split(jax.random.key(0), 300)


def maps(**ranges):
    """Returns 300 drawn maps from output to input: matrices (300, 2, 2) and shifts (300, 2)."""
    augment = image_data_generator(**ranges)
    places = jnp.asarray(PLACES, jnp.float32)
    images = np.asarray(jax.jit(jax.vmap(lambda key: augment(key, {"image": places})["image"]))(KEYS))
    row, column = CENTRE
    shifts = images[:, row, column]
    return np.stack([images[:, row + 1, column], images[:, row, column + 1]], -1) - shifts[..., None], shifts


def assert_uniform(values, low, high):
    assert low - 1e-4 <= values.min() < low + 0.05 * (high - low)
    assert high - 0.05 * (high - low) < values.max() <= high + 1e-4
    error = (high - low) / np.sqrt(12 * values.size)
    assert values.mean() == pytest.approx((low + high) / 2, abs=3.5 * error)


@pytest.fixture(scope="module")
def drawn():
    """Returns rotations in degrees, and what is left of 300 maps (matrices, shifts) without them."""
    matrices, shifts = maps(
        rotation_range=40, width_shift_range=0.2, height_shift_range=0.1, shear_range=20.0, zoom_range=0.2
    )
    # The rest, shear times zoom, is lower triangular: the last column turns by the rotation alone.
    angles = np.arctan2(matrices[:, 0, 1], matrices[:, 1, 1])
    cos, sin = np.cos(angles), np.sin(angles)
    back = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], 1)
    return np.rad2deg(angles), back @ matrices, (back @ shifts[..., None])[..., 0]


@pytest.mark.slow
def test_rotation_is_in_degrees(drawn):
    assert_uniform(drawn[0], -40, 40)


def test_shear_is_in_degrees_and_acts_as_in_keras(drawn):
    """From output to input: rows times the cosine, columns moved by minus the sine per row."""
    angles = np.arctan2(-drawn[1][:, 1, 0], drawn[1][:, 0, 0])
    assert_uniform(np.rad2deg(angles), -20, 20)


def test_zoom_draws_a_factor_for_each_axis(drawn):
    rows, columns = np.linalg.norm(drawn[1][:, :, 0], axis=1), drawn[1][:, 1, 1]
    assert_uniform(rows, 0.8, 1.2)
    assert_uniform(columns, 0.8, 1.2)
    assert abs(np.corrcoef(rows, columns)[0, 1]) < 0.2


def test_shifts_below_one_are_fractions_of_their_own_side(drawn):
    assert_uniform(drawn[2][:, 0], -1.3, 1.3)
    assert_uniform(drawn[2][:, 1], -3.4, 3.4)


@pytest.mark.slow
def test_other_shifts_are_pixels_or_choices_and_other_zooms_are_bounds():
    _, shifts = maps(width_shift_range=3, height_shift_range=2.5)
    assert set(np.round(shifts[:, 1], 4)) == {-2, -1, 0, 1, 2}
    assert_uniform(shifts[:, 0], -2.5, 2.5)
    matrices, shifts = maps(width_shift_range=[1, 4], height_shift_range=(0.0, 2 / 13), zoom_range=(0.5, 0.6))
    assert set(np.round(shifts[:, 1], 4)) == {-4, -1, 1, 4}
    assert set(np.round(shifts[:, 0], 4)) == {-2, 0, 2}
    assert_uniform(matrices[:, 0, 0], 0.5, 0.6)


def test_flips_are_drawn_apart():
    matrices, shifts = maps(horizontal_flip=True, vertical_flip=True)
    signs = [tuple(np.diagonal(matrix)) for matrix in matrices]
    for sign in [(1, 1), (1, -1), (-1, 1), (-1, -1)]:
        assert signs.count(sign) / 300 == pytest.approx(0.25, abs=3 * np.sqrt(0.1875 / 300))
    assert not shifts.any()


def test_brightness_multiplies_and_rescaling_has_happened_already():
    augment = image_data_generator(brightness_range=(0.2, 0.8), rescale=1 / 255)
    grey = {"image": jnp.full((1, 1, 3), 0.5)}
    images = jax.jit(jax.vmap(lambda key: augment(key, grey)["image"][0, 0, 0]))(KEYS)
    assert_uniform(np.asarray(images), 0.1, 0.4)


def test_without_options_nothing_changes():
    image = {"image": jnp.asarray(PLACES)}
    assert image_data_generator()(KEYS[0], image)["image"] is image["image"]


def test_a_rescaling_that_evaluation_would_miss_is_refused():
    with pytest.raises(ValueError, match="rescale=0.5 would change training but not evaluation"):
        image_data_generator(rescale=0.5)
