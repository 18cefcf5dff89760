import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from dl.data.images import augment
from dl.data.images.augment import compose, random_affine
from dl.data.images.image_data_generator import image_data_generator
from dl.data.images.rand_augment import rand_augment

IMAGE = np.random.default_rng(0).random((9, 9, 3)).astype(np.float32)
EXAMPLE = {"image": jnp.asarray(IMAGE), "label": jnp.int32(3)}
KEYS = jax.random.split(jax.random.key(0), 200)

AUGMENTS = {
    "affine": random_affine(rotate=0.2, zoom=0.1, shear=0.1, shift=2.0, fill_mode="reflect"),
    "horizontal_flip": augment.random_horizontal_flip(),
    "vertical_flip": augment.random_vertical_flip(),
    "crop": augment.random_crop(2, fill_mode="reflect"),
    "brightness": augment.random_brightness(0.9),
    "contrast": augment.random_contrast(0.9),
    "cutout": augment.cutout(4),
    "erasing": augment.random_erasing(0.8),
    "rand_augment": rand_augment(2, 15.0),
    "keras": image_data_generator(
        rotation_range=40,
        width_shift_range=0.2,
        height_shift_range=0.2,
        shear_range=0.2,
        zoom_range=0.2,
        horizontal_flip=True,
        brightness_range=(0.5, 1.5),
    ),
}


@pytest.fixture(scope="module")
def augmented():
    """Every augmentation of one example under 200 keys, in one compiled program."""
    run = jax.jit(lambda keys: {name: jax.vmap(a, (0, None))(keys, EXAMPLE) for name, a in AUGMENTS.items()})
    return jax.device_get((run(KEYS), run(KEYS)))


@pytest.mark.slow
@pytest.mark.parametrize("name", AUGMENTS)
def test_an_augmentation_is_a_function_of_its_key_and_stays_in_range(augmented, name):
    first, again = augmented[0][name], augmented[1][name]
    chex.assert_trees_all_equal(first, again)
    images = first["image"]
    assert images.shape == (200, 9, 9, 3)
    assert images.dtype == np.float32
    assert images.min() >= 0
    assert images.max() <= 1 + 1e-6
    assert len(np.unique(images.reshape(200, -1), axis=0)) > 1
    assert (first["label"] == 3).all()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "axis"), [("horizontal_flip", 1), ("vertical_flip", 0)])
def test_a_flip_mirrors_half_of_the_time(augmented, name, axis):
    images = augmented[0][name]["image"]
    is_flipped = np.array([(image == np.flip(IMAGE, axis)).all() for image in images])
    is_kept = np.array([(image == IMAGE).all() for image in images])
    assert (is_flipped ^ is_kept).all()
    assert is_flipped.mean() == pytest.approx(0.5, abs=3 * 0.5 / np.sqrt(200))
    flip = getattr(augment, f"random_{name}")(1.0)
    twice = flip(KEYS[0], flip(KEYS[1], EXAMPLE))["image"]
    chex.assert_trees_all_equal(twice, EXAMPLE["image"])


def test_the_bounds_of_an_affine_map_hold():
    shift = random_affine(shift=1.0)
    peak = jnp.zeros((9, 9, 1)).at[4, 4].set(1.0)
    images = np.asarray(jax.jit(jax.vmap(lambda key: shift(key, {"image": peak})["image"]))(KEYS))
    assert not images[:, :3].any()
    assert not images[:, :, 6:].any()
    mean_row = float((images[..., 0].sum((0, 2)) * np.arange(9)).sum() / images.sum())
    assert mean_row == pytest.approx(4.0, abs=0.15)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fill_mode", "numpy_mode"),
    [("constant", "constant"), ("nearest", "edge"), ("reflect", "symmetric"), ("wrap", "wrap")],
)
def test_a_crop_is_a_window_of_the_padded_image(fill_mode, numpy_mode):
    padded = np.pad(IMAGE, [(2, 2), (2, 2), (0, 0)], numpy_mode)
    windows = [padded[row : row + 7, column : column + 8] for row in range(7) for column in range(6)]
    crop = augment.random_crop(2, size=(7, 8), fill_mode=fill_mode)
    crops = np.asarray(jax.jit(jax.vmap(crop, (0, None)))(KEYS, EXAMPLE)["image"])
    where = [[i for i, window in enumerate(windows) if (window == c).all()] for c in crops]
    assert all(len(found) == 1 for found in where)
    assert len({found[0] for found in where}) > 35  # of 42 places: 200 draws miss fewer than one on average


def test_a_crop_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"size \(12, 9\) does not fit into an image of \(9, 9\)"):
        augment.random_crop(1, size=(12, 9))(KEYS[0], EXAMPLE)


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0, 1.7])
def test_brightness_and_contrast_equal_pillow(factor):
    pixels = np.round(IMAGE * 255).astype(np.uint8)
    for adjust, peer in [
        (augment.adjust_brightness, ImageEnhance.Brightness),
        (augment.adjust_contrast, ImageEnhance.Contrast),
    ]:
        expected = np.asarray(peer(Image.fromarray(pixels)).enhance(factor)) / 255
        # Pillow rounds the mean grey and the result to bytes
        np.testing.assert_allclose(adjust(pixels / np.float32(255), factor), expected, atol=1.6 / 255)


@pytest.mark.slow
def test_brightness_and_contrast_draw_their_factor_uniformly(augmented):
    mean = IMAGE.mean()
    darkest = augmented[0]["brightness"]["image"].mean((1, 2, 3)) / mean
    assert darkest.min() == pytest.approx(0.1, abs=0.05)
    spread = augmented[0]["contrast"]["image"].std((1, 2, 3)) / IMAGE.std()
    assert spread.min() == pytest.approx(0.1, abs=0.05)


def test_cutout_blots_out_a_square_that_may_lie_partly_outside(augmented):
    images = augmented[0]["cutout"]["image"]
    is_kept = (images == IMAGE).all(-1)
    assert (images[~is_kept] == 0).all()
    heights, widths = (~is_kept).any(2).sum(1), (~is_kept).any(1).sum(1)
    assert ((~is_kept).sum((1, 2)) == heights * widths).all()
    # 4 rows centred on one of 9: two or three are left at the border
    assert set(heights) == set(widths) == {2, 3, 4}
    assert (heights == 4).mean() == pytest.approx(6 / 9, abs=3 * np.sqrt(2 / 9 / 200))


def test_random_erasing_keeps_to_its_probability_and_area(augmented):
    is_erased = (augmented[0]["erasing"]["image"] != IMAGE).any(-1)
    share = is_erased.mean((1, 2))
    assert (share > 0).mean() == pytest.approx(0.8, abs=3 * 0.4 / np.sqrt(200))
    heights, widths = is_erased.any(2).sum(1), is_erased.any(1).sum(1)
    assert (is_erased.sum((1, 2)) == heights * widths).all()
    assert share.max() <= 0.4 + 0.06  # sides are rounded to pixels
    assert share.max() > 0.3


def test_a_composition_applies_each_part_with_a_key_of_its_own():
    def draw(key, example):
        return {**example, "image": jnp.concatenate([example["image"], jax.random.uniform(key, (1,))])}

    example = {"image": jnp.zeros(0), "label": 1}
    first, second = compose(draw, draw)(KEYS[0], example)["image"]
    assert first != second
    assert compose()(KEYS[0], example) == example
