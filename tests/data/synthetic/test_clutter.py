"""Images in clutter: the image is where the region says, and fragments are of other images."""

import numpy as np
import pytest

from dl.data.synthetic.clutter import add_clutter
from dl.errors import UserError

IMAGES = np.random.default_rng(0).integers(1, 256, (5, 6, 6, 1)).astype(np.uint8)


def test_without_fragments_the_canvas_has_the_image_alone():
    found = add_clutter(IMAGES, side=10, num_fragments=0, fragment=3)
    for canvas, region, image in zip(found.images, found.regions, IMAGES, strict=True):
        rows, columns = np.nonzero(canvas[..., 0])
        np.testing.assert_array_equal(canvas[rows.min() :, columns.min() :][:6, :6], image)
        np.testing.assert_array_equal(region, canvas[..., 0] > 63)
        assert np.count_nonzero(canvas) == 36


def test_fragments_only_add_light_and_the_seed_decides():
    bare = add_clutter(IMAGES, side=12, num_fragments=0, fragment=3, seed=1)
    full = add_clutter(IMAGES, side=12, num_fragments=6, fragment=3, seed=1)
    again = add_clutter(IMAGES, side=12, num_fragments=6, fragment=3, seed=1)
    np.testing.assert_array_equal(full.images, again.images)
    assert np.count_nonzero(full.images) > np.count_nonzero(bare.images)
    assert full.images.shape == (5, 12, 12, 1)
    assert (full.images[full.regions] > 63).all()


def test_a_canvas_that_is_too_small_is_refused():
    with pytest.raises(UserError, match="side=5"):
        add_clutter(IMAGES, side=5)
