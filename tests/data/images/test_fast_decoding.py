import numpy as np
import pytest
from PIL import Image

from dl.data.images import fast_decoding
from dl.data.images.classification import image_classification
from dl.data.images.disk_dataset import Unreadable
from dl.data.images.files import read_pixels
from dl.errors import UserError

SHAPE = (32, 32, 3)


@pytest.fixture
def needs_the_extra():
    pytest.importorskip("simplejpeg")
    pytest.importorskip("cykooz_resizer")


def write_photo(path, width, height, **options):
    waves = np.sin(np.arange(height)[:, None, None] / 9 + np.arange(width)[:, None] / 7 + np.arange(3))
    Image.fromarray(((waves + 1) * 127).astype(np.uint8)).save(path, quality=90, **options)
    return path


@pytest.mark.parametrize("size", [(61, 47), (50, 63)])
@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("orientation", [1, 6])
def test_pixels_differ_by_one_at_most_unscaled(tmp_path, needs_the_extra, size, subsampling, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = write_photo(tmp_path / "a.jpg", *size, subsampling=subsampling, exif=exif)
    exact, fast = (read_pixels(path, SHAPE, True, is_fast).astype(int) for is_fast in (False, True))
    assert np.abs(exact - fast).max() <= 1


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_large_photographs_are_decoded_as_pillow_drafts_them(tmp_path, needs_the_extra, scale):
    path = write_photo(tmp_path / "a.jpg", 32 * scale, 32 * scale)
    with Image.open(path) as drafted:
        drafted.draft(None, (32, 32))
        expected = np.asarray(drafted)
    assert expected.shape == SHAPE
    np.testing.assert_array_equal(read_pixels(path, SHAPE, True, True), expected)


def test_a_damaged_file_is_named(tmp_path, needs_the_extra):
    path = write_photo(tmp_path / "a.jpg", 61, 47)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(Unreadable, match=r"a\.jpg"):
        read_pixels(path, SHAPE, True, True)


def test_without_the_extra_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(fast_decoding.importlib.util, "find_spec", lambda name: None)
    data = image_classification(str(tmp_path), fast_decoding=True)
    with pytest.raises(UserError, match=r"run pip install -e '\.\[streaming\]'"):
        data.num_classes  # noqa: B018
