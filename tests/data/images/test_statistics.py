import jax.numpy as jnp
import numpy as np
import pytest

from dl.data import ArraySource
from dl.data.images.decoding import to_unit_range
from dl.data.images.statistics import channel_statistics
from dl.models.scaling import standardize


@pytest.mark.parametrize("size", [5, 2500])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_the_statistics_equal_numpys(size, dtype):
    """The images brighten on the way, so that parts differ from the whole."""
    random = np.random.default_rng(0)
    image = random.integers(0, 56, (size, 3, 2, 3)) + np.linspace(0, 199, size)[:, None, None, None]
    image = (image / (1 if dtype == np.uint8 else 255)).astype(dtype)
    mean, std = channel_statistics(ArraySource({"image": image, "label": np.zeros(size, int)}))
    pixels = image.astype(np.float64) / (255 if dtype == np.uint8 else 1)
    np.testing.assert_allclose(mean, pixels.mean((0, 1, 2)), rtol=1e-10)
    np.testing.assert_allclose(std, pixels.std((0, 1, 2)), rtol=1e-10)


def test_standardised_training_images_have_mean_0_and_deviation_1_and_others_the_same_scale():
    random = np.random.default_rng(0)
    image = random.integers(0, 128, (64, 4, 4, 3), np.uint8)
    scaling = standardize(*channel_statistics(ArraySource({"image": image})))
    scaled = scaling(to_unit_range({"image": jnp.asarray(image)})["image"])
    np.testing.assert_allclose(scaled.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(scaled.std((0, 1, 2)), 1, atol=1e-5)
    # Brighter test images stay brighter: what is subtracted was learnt from the training images alone.
    brighter = scaling(to_unit_range({"image": jnp.asarray(image + 100)})["image"])
    shift = 100 / 255 / (image / 255).std((0, 1, 2))
    np.testing.assert_allclose((brighter - scaled).mean((0, 1, 2)), shift, rtol=1e-4)


def test_nothing_has_no_statistics():
    with pytest.raises(ValueError, match="no examples, so it has no statistics"):
        channel_statistics(ArraySource({"image": np.zeros((0, 2, 2, 1), np.uint8)}))
