import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from dl.data.images.affine import warp
from dl.data.images.rand_augment import (
    COLOUR_OPS,
    NUM_GEOMETRIC,
    auto_contrast,
    colour,
    geometric,
    posterize,
    rand_augment,
    sharpness,
    solarize,
)

BYTES = np.random.default_rng(0).integers(30, 200, (9, 9, 3)).astype(np.uint8)
IMAGE = jnp.asarray(BYTES, jnp.float32) / 255
PICTURE = Image.fromarray(BYTES)
BRIGHTER, CONTRASTED = COLOUR_OPS[2], COLOUR_OPS[4]


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (auto_contrast(IMAGE, 0.5), ImageOps.autocontrast(PICTURE)),
        (BRIGHTER(IMAGE, 0.5), ImageEnhance.Brightness(PICTURE).enhance(1.45)),
        (colour(IMAGE, -0.5), ImageEnhance.Color(PICTURE).enhance(0.55)),
        (colour(IMAGE, 0.5), ImageEnhance.Color(PICTURE).enhance(1.45)),
        (CONTRASTED(IMAGE, -1.0), ImageEnhance.Contrast(PICTURE).enhance(0.1)),
        (sharpness(IMAGE, -1.0), ImageEnhance.Sharpness(PICTURE).enhance(0.1)),
        (sharpness(IMAGE, 1.0), ImageEnhance.Sharpness(PICTURE).enhance(1.9)),
        (posterize(IMAGE, -0.5), ImageOps.posterize(PICTURE, 6)),
        (posterize(IMAGE, 1.0), ImageOps.posterize(PICTURE, 4)),
        (solarize(IMAGE, 0.5), ImageOps.solarize(PICTURE, 128)),
    ],
    ids=[
        *("auto_contrast", "brighter", "grey", "colourful", "flat"),
        *("blurred", "sharp", "6_bits", "4_bits", "solarize"),
    ],
)
def test_an_operation_equals_pillow(actual, expected):
    np.testing.assert_allclose(actual, np.asarray(expected) / 255, atol=1.6 / 255)


@pytest.mark.parametrize(
    ("which", "matrix", "shift"),
    [
        (0, [[np.sqrt(0.75), 0.5], [-0.5, np.sqrt(0.75)]], [0, 0]),
        (1, [[1, 0], [0.3, 1]], [0, 0]),
        (2, [[1, 0.3], [0, 1]], [0, 0]),
        (3, np.eye(2), [0, 4.5]),
        (4, np.eye(2), [9, 0]),
        (5, np.eye(2), [0, 0]),
    ],
    ids=["rotate", "shear_columns", "shear_rows", "move_columns", "move_rows", "none"],
)
def test_the_geometric_operations_at_full_strength(which, matrix, shift):
    actual_matrix, actual_shift = geometric(which, 1.0, (20, 10, 3))
    np.testing.assert_allclose(actual_matrix, matrix, atol=1e-6)
    np.testing.assert_allclose(actual_shift, shift, atol=1e-5)


@pytest.mark.slow
def test_every_operation_is_drawn_equally_often_with_either_sign():
    def outcomes(level):
        yield [IMAGE]
        yield [auto_contrast(IMAGE, level)]
        for which in range(NUM_GEOMETRIC):
            yield [warp(IMAGE, *geometric(which, s * level, IMAGE.shape), cval=0.5) for s in (1, -1)]
        for change in COLOUR_OPS[2:]:
            yield [change(IMAGE, s * level) for s in (1, -1)]

    augment = rand_augment(1, 24.0)
    keys = jax.random.split(jax.random.key(0), 650)
    images = np.asarray(jax.jit(jax.vmap(lambda key: augment(key, {"image": IMAGE})["image"]))(keys))
    expected = jax.device_get(jax.jit(lambda level: list(outcomes(level)))(0.8))
    assert len(expected) == 13
    total = 0
    for signs in expected:
        counts = [int((abs(images - image[None]).max((1, 2, 3)) < 1e-4).sum()) for image in signs]
        assert min(counts) > 0
        count = counts[0] if (signs[0] == signs[-1]).all() else sum(counts)
        assert count == pytest.approx(50, abs=3.5 * np.sqrt(50))
        total += count
    assert total == 650
