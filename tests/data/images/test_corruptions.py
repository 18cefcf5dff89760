"""Corruptions of images against closed forms, SciPy, Pillow and Matplotlib; keyed by the row alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from PIL import Image
from scipy import ndimage, stats

from dl.data.images import corruptions
from dl.data.images.corruptions import NAMES, SEVERITIES, constants_of, corrupt_stored

SIZE, SHAPE = 64, (16, 12, 3)
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.random((SIZE, *SHAPE), np.float32)
GREY = np.full((SIZE, *SHAPE), 0.5, np.float32)
NUM_VALUES = GREY.size

program = jax.jit(
    lambda images, index, which, severity: corrupt_stored(
        {"image": images, "index": index}, "image", which, severity, 0
    )["image"]
)


def by_severity(name, *constants):
    return pytest.mark.parametrize(("severity", name), list(zip(SEVERITIES, constants, strict=True)))


def corrupted(name, severity, images=IMAGES, index=None):
    index = np.arange(len(images)) if index is None else index
    return np.asarray(program(images, index, NAMES.index(name), severity))


@pytest.mark.slow
def test_all_is_one_program_and_stays_in_range():
    for name in NAMES:
        for severity in SEVERITIES:
            found = corrupted(name, severity)
            assert found.shape == IMAGES.shape
            assert found.dtype == np.float32
            assert found.min() >= 0
            assert found.max() <= 1
            assert np.abs(found - IMAGES).max(axis=(1, 2, 3)).min() > 0  # no image is left out
    assert program._cache_size() == 1


@pytest.mark.slow
def test_severity_0_is_the_image():
    for name in NAMES:
        np.testing.assert_array_equal(corrupted(name, 0), IMAGES)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_what_an_image_becomes_depends_on_its_row_and_not_on_its_neighbours(name):
    order = np.random.default_rng(1).permutation(SIZE)
    whole, shuffled = corrupted(name, 3), corrupted(name, 3, IMAGES[order], order)
    np.testing.assert_array_equal(shuffled, whole[order])
    same = np.broadcast_to(IMAGES[:1], IMAGES.shape)
    is_random = name not in ("gaussian_blur", "brightness", "contrast", "pixelate")
    assert (np.ptp(corrupted(name, 3, same), axis=0).max() > 0) == is_random


def test_severities_draw_anew():
    signs = [np.sign(corrupted("gaussian_noise", severity, GREY) - 0.5) for severity in (1, 2)]
    assert 0.45 < (signs[0] == signs[1]).mean() < 0.55


@by_severity("deviation", 0.04, 0.06, 0.08, 0.09, 0.10)
def test_gaussian_noise_has_its_moments(severity, deviation):
    noise = corrupted("gaussian_noise", severity, GREY) - 0.5
    assert noise.mean() == pytest.approx(0, abs=4 * deviation / NUM_VALUES**0.5)
    assert noise.std() == pytest.approx(deviation, rel=4 / (2 * NUM_VALUES) ** 0.5)


@by_severity("photons", 500, 250, 100, 75, 50)
def test_shot_noise_is_poisson(severity, photons):
    counts = corrupted("shot_noise", severity, GREY) * photons
    np.testing.assert_allclose(counts, np.round(counts), atol=1e-3)
    mean = 0.5 * photons
    edges = stats.poisson.ppf([0.2, 0.4, 0.6, 0.8], mean)
    expected = np.diff(np.concatenate([[0], stats.poisson.cdf(edges, mean), [1]]))
    observed = np.bincount(np.searchsorted(edges, np.round(counts).ravel()), minlength=5)
    assert stats.chisquare(observed, expected * NUM_VALUES).pvalue > 1e-4
    assert not corrupted("shot_noise", severity, np.zeros_like(GREY)).any()


@by_severity("fraction", 0.01, 0.02, 0.03, 0.05, 0.07)
def test_impulse_noise_is_salt_and_pepper_alike(severity, fraction):
    found = corrupted("impulse_noise", severity, GREY)
    assert set(np.unique(found)) == {0, 0.5, 1}
    for value in (0, 1):
        half = fraction / 2
        assert (found == value).mean() == pytest.approx(half, abs=4 * (half / NUM_VALUES) ** 0.5)


@by_severity("sigma", 0.4, 0.6, 0.7, 0.8, 1.0)
def test_gaussian_blur_is_scipys(severity, sigma):
    expected = ndimage.gaussian_filter(IMAGES, (0, sigma, sigma, 0), mode="nearest", truncate=4.0)
    np.testing.assert_allclose(corrupted("gaussian_blur", severity), expected, atol=1e-5)


def direct_motion_blur(image, angle, radius, sigma):
    """The sum over the pixels of a line that begins at each place, tap by tap."""
    weights = np.exp(-(np.arange(2 * radius + 1) ** 2) / (2 * sigma**2))
    total = np.zeros(image.shape)
    for tap, weight in enumerate(weights / weights.sum()):
        row, column = (int(np.ceil(tap * part - 0.5)) for part in (np.sin(angle), np.cos(angle)))
        rows = np.clip(np.arange(image.shape[0]) + row, 0, image.shape[0] - 1)
        columns = np.clip(np.arange(image.shape[1]) + column, 0, image.shape[1] - 1)
        total += weight * image[rows][:, columns]
    return total


# Of a large image the lengths are those of 224 pixels, here times 70/224; a radius is rounded up.
@pytest.mark.parametrize(
    ("shape", "constants"),
    [
        (SHAPE, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
        ((70, 80, 1), ((4, 3 * 70 / 224), (5, 5 * 70 / 224), (5, 2.5), (5, 3.75), (7, 15 * 70 / 224))),
    ],
)
def test_motion_blur_is_a_weighted_sum_along_a_line(shape, constants):
    image = np.random.default_rng(2).random(shape, np.float32)
    blur = jax.jit(corruptions.motion_blur)
    angles = set()
    for severity, (radius, sigma) in zip(SEVERITIES, constants, strict=True):
        key = jax.random.key(severity)
        angle = float(jax.random.uniform(key, minval=-jnp.pi / 4, maxval=jnp.pi / 4))
        angles.add(np.sign(angle))
        expected = direct_motion_blur(image, angle, radius, sigma)
        np.testing.assert_allclose(blur(key, image, severity), expected, atol=1e-5)
    assert angles == {-1, 1}


@by_severity("added", 0.05, 0.1, 0.15, 0.2, 0.3)
def test_brightness_adds_to_the_value_of_hsv(severity, added):
    images = IMAGES.copy()
    images[0, :4] = 0  # black has no hue
    hsv = rgb_to_hsv(images)
    hsv[..., 2] = np.minimum(hsv[..., 2] + added, 1)
    np.testing.assert_allclose(corrupted("brightness", severity, images), hsv_to_rgb(hsv), atol=1e-5)


@by_severity("factor", 0.75, 0.5, 0.4, 0.3, 0.15)
def test_contrast_shrinks_to_the_mean_of_each_channel(severity, factor):
    mean = IMAGES.mean((1, 2), keepdims=True)
    found = corrupted("contrast", severity)
    np.testing.assert_allclose(found, factor * IMAGES + (1 - factor) * mean, atol=1e-6)


def pillows_boxes(image, share):
    size = (int(image.shape[1] * share), int(image.shape[0] * share))
    channels = [
        np.asarray(Image.fromarray(channel).resize(size, Image.Resampling.BOX).resize(
            (image.shape[1], image.shape[0]), Image.Resampling.BOX))
        for channel in np.moveaxis(image, -1, 0)
    ]  # fmt: skip
    return np.stack(channels, axis=-1)


@pytest.mark.parametrize(
    ("shape", "shares"),
    [
        (SHAPE, (0.95, 0.9, 0.85, 0.75, 0.65)),
        ((8, 8, 1), (0.95, 0.9, 0.85, 0.75, 0.65)),
        ((32, 28, 1), (0.95, 0.9, 0.85, 0.75, 0.65)),
        ((96, 75, 3), (0.6, 0.5, 0.4, 0.3, 0.25)),
    ],
)
def test_pixelate_is_pillows(shape, shares):
    image = np.random.default_rng(3).random(shape, np.float32)
    pixelate = jax.jit(corruptions.pixelate)
    for severity, share in zip(SEVERITIES, shares, strict=True):
        found = pixelate(jax.random.key(0), image, severity)
        np.testing.assert_allclose(found, pillows_boxes(image, share), atol=1e-5)


@by_severity("share", 0.04, 0.08, 0.12, 0.16, 0.2)
def test_translation_moves_by_a_share_of_the_shorter_side(severity, share):
    # Ramps along rows and columns tell where each pixel came from.
    ramps = np.stack(np.meshgrid(np.arange(16), np.arange(12), indexing="ij"), axis=-1)
    images = IMAGES.copy()
    images[..., :2] = ramps / 20 + 0.1
    found = corrupted("translation", severity, images)
    shifts = (found - images)[:, 8, 6, :2] * 20
    np.testing.assert_allclose(np.hypot(*shifts.T), share * 12, rtol=1e-3)
    quadrants = {tuple(quadrant) for quadrant in np.sign(shifts)}
    assert len(quadrants) == 4
    for image, moved, shift in zip(images[:8], found, shifts, strict=False):
        expected = ndimage.shift(image, (*-shift, 0), order=1, mode="nearest")
        np.testing.assert_allclose(moved, expected, atol=1e-3)


@by_severity("degrees", 6, 12, 18, 24, 30)
def test_rotation_turns_to_either_side(severity, degrees):
    found = corrupted("rotation", severity)
    turned = [
        ndimage.rotate(IMAGES, sign * degrees, (1, 2), reshape=False, order=1, mode="nearest")
        for sign in (1, -1)
    ]
    distance = np.stack([np.abs(found - one).max((1, 2, 3)) for one in turned])
    assert distance.min(0).max() < 1e-4
    assert 16 < (distance[0] < 1e-4).sum() < 48


def test_large_images_get_the_constants_of_imagenet_c():
    shapes = ((8, 8, 1), (64, 64, 3), (65, 20, 3), (224, 224, 3))
    assert [constants_of(shape) for shape in shapes] == ["CIFAR-10-C"] * 2 + ["ImageNet-C"] * 2
    image = np.random.default_rng(4).random((72, 96, 1), np.float32)
    blur, contrast = jax.jit(corruptions.gaussian_blur), jax.jit(corruptions.contrast)
    for severity, sigma, factor in zip(SEVERITIES, (1, 2, 3, 4, 6), (0.4, 0.3, 0.2, 0.1, 0.05), strict=True):
        sigma = sigma * 72 / 224
        expected = ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest", truncate=4.0)
        np.testing.assert_allclose(blur(jax.random.key(0), image, severity), expected, atol=1e-5)
        expected = factor * image + (1 - factor) * image.mean()
        np.testing.assert_allclose(contrast(jax.random.key(0), image, severity), expected, atol=1e-5)


@pytest.mark.slow
def test_neither_batch_size_nor_devices_change_what_an_image_becomes(mesh8, monkeypatch):
    # Few of them, as each batch size and each mesh is compiled anew.
    few = (corruptions.gaussian_noise, corruptions.impulse_noise, corruptions.motion_blur)
    monkeypatch.setattr(corruptions, "CORRUPTIONS", few)
    images = RANDOM.integers(0, 256, (16, 8, 8, 1), np.uint8)

    @jax.jit
    def corrupt(batch, which):
        return corrupt_stored(batch, "image", which, 4, 7)["image"]

    sharding = NamedSharding(mesh8, PartitionSpec("data"))
    for which in range(len(few)):
        batch = {"image": images, "index": np.arange(100, 116)}
        whole = np.asarray(corrupt(batch, which))
        assert whole.dtype == np.uint8
        assert (whole != images).any()
        on_eight = corrupt(jax.device_put(batch, sharding), which)
        assert len(on_eight.sharding.device_set) == 8
        np.testing.assert_array_equal(on_eight, whole)
        parts = [corrupt({k: v[i : i + 4] for k, v in batch.items()}, which) for i in range(0, 16, 4)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_bytes_come_back_as_they_are_at_severity_0(monkeypatch):
    monkeypatch.setattr(corruptions, "CORRUPTIONS", (corruptions.contrast,))
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    batch = {"image": images, "index": np.zeros(1, np.int32), "label": np.ones(1)}
    corrupt = jax.jit(lambda batch, severity: corrupt_stored(batch, "image", 0, severity, 0))
    found = corrupt(batch, 0)
    np.testing.assert_array_equal(found["image"], images)
    np.testing.assert_array_equal(found["label"], batch["label"])
    shrunk = np.round(0.75 * images.astype(np.float64) + 0.25 * images.mean())
    np.testing.assert_allclose(corrupt(batch, 1)["image"], shrunk, atol=1)
