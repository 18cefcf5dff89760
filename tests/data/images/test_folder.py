"""Folders of images by class: written with Pillow, read back through `image_classification`."""

import os
import shutil
import stat
import struct
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from dl.data import image_classification
from dl.errors import UserError
from tests.data.tiny_sets import grey_examples, noise
from tests.helpers import REAL_DATA

RED, GREEN = (200, 100, 50), (10, 220, 30)


@pytest.fixture
def photos(data_dir, tmp_path, monkeypatch):
    """An empty folder below the working directory; the data folder holds no set."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)


def fill(folder, count=10, classes=("cat", "dog"), seed=0):
    """Writes `count` images of 4x6 a class, last names first; returns them and their labels in order."""
    pixels = noise(seed, len(classes), count, 4, 6, 3)
    for label, name in reversed(list(enumerate(classes))):
        for i in reversed(range(count)):
            save(folder / name / f"{i:03d}.png", pixels[label, i])
    return pixels.reshape(-1, 4, 6, 3), np.repeat(np.arange(len(classes)), count)


def all_rows(source):
    return source[np.arange(len(source))]


def read_all(data):
    return {split: all_rows(getattr(data, split)) for split in ("train", "validation", "test")}


def only_image(path):
    """The image of the folder `path`, which has one in each split."""
    return all_rows(image_classification(path).test)["image"][0]


def cached(tmp_path):
    return sorted((tmp_path / "cache").rglob("*.npz*"))


# Splits, classes and rows.


@pytest.mark.parametrize("validation", ["validation", "val"])
def test_official_splits_are_read_as_written_in_the_order_of_the_names(photos, validation):
    folders = {"train": "train", "validation": validation, "test": "test"}
    written = {split: fill(photos / name, seed=i) for i, (split, name) in enumerate(folders.items())}
    data = image_classification("./photos")
    assert data.class_names == ("cat", "dog")
    assert (data.num_classes, data.image_shape, data.notice) == (2, (4, 6, 3), None)
    assert set(data.evaluations) == {"validation", "test"}
    for split, (images, labels) in written.items():
        rows = all_rows(getattr(data, split))
        assert (rows["image"].dtype, rows["label"].dtype) == (np.uint8, np.int32)
        np.testing.assert_array_equal(rows["image"], images)
        np.testing.assert_array_equal(rows["label"], labels)
    assert (data.identity.name, data.identity.sizes) == ("photos", dict.fromkeys(folders, 20))
    assert "4x6x3 images, 2 classes; ready from the image folder in" in data.provenance


@pytest.mark.parametrize(
    ("official", "sizes"),
    [
        (["."], {"train": 36, "validation": 4, "test": 10}),
        (["train"], {"train": 36, "validation": 4, "test": 10}),
        (["train", "val"], {"train": 45, "validation": 5, "test": 50}),
        (["train", "test"], {"train": 45, "validation": 5, "test": 50}),
    ],
)
def test_missing_splits_are_taken_by_the_rule_of_every_set(photos, official, sizes):
    written = [fill(photos / name, count=25, seed=i) for i, name in enumerate(official)]
    data = image_classification("./photos")
    assert data.identity.sizes == sizes
    read = read_all(data).values()
    got = [(i.tobytes(), int(n)) for rows in read for i, n in zip(rows["image"], rows["label"], strict=True)]
    expected = [(i.tobytes(), int(n)) for w in written for i, n in zip(*w, strict=True)]
    assert sorted(got) == sorted(expected)  # each exactly once


def test_the_order_of_the_directory_does_not_matter(photos, monkeypatch):
    images, labels = fill(photos)
    whole = image_classification("./photos", max_resident_bytes=1)
    scandir = os.scandir

    class Shuffled:
        def __init__(self, path):
            with scandir(path) as entries:
                self.entries = sorted(entries, key=lambda entry: hash((3, entry.name)))

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *error):
            pass

    first = all_rows(whole.train)
    monkeypatch.setattr(os, "scandir", Shuffled)
    second = all_rows(image_classification("./photos", max_resident_bytes=1).train)
    np.testing.assert_array_equal(second["image"], first["image"])
    np.testing.assert_array_equal(second["label"], first["label"])
    for image, label in zip(first["image"], first["label"], strict=True):
        at = next(i for i in range(len(images)) if np.array_equal(images[i], image))
        assert labels[at] == label


def test_what_is_no_visible_image_is_not_seen(photos):
    fill(photos)
    before = image_classification("./photos").identity
    for name in ("cat/Thumbs.db", "cat/.DS_Store", "dog/._000.png", "dog/notes.txt", "read.me", ".git/x.png"):
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).write_text("no image")
    (photos / "dog/deeper.png").mkdir()
    assert image_classification("./photos").identity == before


def test_what_systems_leave_behind_is_no_class_and_links_are_followed(photos, tmp_path):
    fill(tmp_path / "elsewhere", classes=("cat", "dog"))
    (photos / "cat").symlink_to(tmp_path / "elsewhere/cat")
    (photos / "dog").mkdir()
    for image in (tmp_path / "elsewhere/dog").iterdir():
        (photos / "dog" / image.name).symlink_to(image)
    for name in (".ipynb_checkpoints", "@eaDir", "__MACOSX", ".dl_decoded"):
        save(photos / name / "x.png", noise(0, 4, 6, 3))
        save(photos / "dog" / name / "x.png", noise(0, 4, 6, 3))
    for name in ("desktop.ini", "THUMBS.DB", "Icon\r"):
        (photos / "dog" / name).touch()
    (photos / "dog/loop").symlink_to(photos)
    (photos / "dog/itself").symlink_to(photos / "dog/itself")
    data = image_classification("./photos")
    assert data.class_names == ("cat", "dog")
    assert sum(data.identity.sizes.values()) == 20
    assert "not read: 1 files with other endings (itself 1); 20 images in deeper" in data.provenance


def test_what_is_passed_over_is_counted_and_said(photos):
    fill(photos / "train")
    assert "not read" not in image_classification("./photos").provenance
    for name in ("train/cat/a.heic", "train/dog/b.HEIC", "train/dog/notes.txt", "train/dog/x\x1b[2J"):
        (photos / name).touch()
    save(photos / "train/cat/more/even/1.JPG", noise(0, 4, 6, 3))
    save(photos / "train/2.tiff", noise(0, 4, 6, 3))
    fill(photos / "valid")
    said = image_classification("./photos").provenance.partition("not read: ")[2]
    assert said == (
        "4 files with other endings (.heic 2, .txt 1, x\\x1b[2J 1); 1 images in deeper folders (such as "
        "train/cat/more/even/1.JPG); 1 images beside the class folders (such as train/2.tiff); "
        "the folders valid, which are not splits"
    )


# What an image becomes.


def two_frames():
    first, second = (Image.new("RGB", (4, 4), colour).quantize() for colour in (RED, GREEN))
    return first, {"save_all": True, "append_images": [second]}


def palette_with_transparency():
    return Image.new("RGBA", (4, 4), (*RED, 255)).quantize(), {"transparency": bytes([9] * 256)}


IMAGES = {
    "x.PNG": lambda: (Image.new("RGB", (4, 4), RED), {"format": "PNG"}),
    "x.bmp": lambda: (Image.new("RGB", (4, 4), RED), {}),
    "x.webp": lambda: (Image.new("RGB", (4, 4), RED), {"lossless": True}),
    "x.gif": two_frames,
    "x.TIF": lambda: (Image.new("RGB", (4, 4), RED), {"format": "TIFF"}),
    "x.jfif": lambda: (Image.new("RGB", (4, 4), RED), {"format": "PNG"}),
    "x.ppm": lambda: (Image.new("RGB", (4, 4), RED), {}),
    "really_png.jpg": lambda: (Image.new("RGB", (4, 4), RED), {"format": "PNG"}),
    "transparent.png": lambda: (Image.new("RGBA", (4, 4), (*RED, 128)), {}),
    "palette.png": lambda: (Image.new("RGB", (4, 4), RED).quantize(), {}),
    "palette_transparent.png": palette_with_transparency,
}
GREY = {
    "grey.png": lambda: (Image.new("L", (4, 4), 77), {}),
    "grey_transparent.png": lambda: (Image.new("LA", (4, 4), (77, 5)), {}),
    "sixteen_bits.png": lambda: (Image.fromarray(np.full((4, 4), 77 * 256 + 99, np.uint16)), {}),
    "sixteen_bits.tiff": lambda: (Image.fromarray(np.full((4, 4), 77 * 256 + 99, np.uint16)), {}),
    "x.pgm": lambda: (Image.new("L", (4, 4), 77), {}),
}


@pytest.mark.parametrize("name", [*IMAGES, *GREY])
def test_every_format_and_mode_becomes_rgb(photos, name):
    image, options = {**IMAGES, **GREY}[name]()
    for split in ("train", "val", "test"):
        save(photos / split / "only" / name, image, **options)
    colour = RED if name in IMAGES else (77, 77, 77)
    np.testing.assert_array_equal(only_image("./photos"), np.broadcast_to(np.uint8(colour), (4, 4, 3)))


UPRIGHT = {  # what a viewer does with what is stored (TIFF 6.0, "Orientation")
    1: lambda x: x,
    2: np.fliplr,
    3: lambda x: np.rot90(x, 2),
    4: np.flipud,
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x, 2).transpose(1, 0, 2),
    8: lambda x: np.rot90(x, 1),
}


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_images_are_turned_upright(photos, orientation, name):
    stored = noise(0, 4, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for split in ("train", "val", "test"):
        save(photos / split / "only" / name, stored, exif=exif)
    np.testing.assert_array_equal(only_image("./photos"), UPRIGHT[orientation](stored))


def exif_of(value, kind=3, count=1, tail=b""):
    """EXIF with nothing but an orientation: its four bytes, and its type (TIFF 6.0: 3 is a short)."""
    entry = struct.pack("<HHI", 0x0112, kind, count) + value.ljust(4, b"\0")
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4) + tail


BROKEN_EXIF = {
    "no orientation": exif_of(b"\x09"),
    "zero": exif_of(b"\0"),
    "too large": exif_of(b"\xff\xff"),
    "text": exif_of(b"six", kind=2, count=4),
    "a float": exif_of(struct.pack("<f", 6.0), kind=11),
    "a fraction": exif_of(struct.pack("<I", 26), kind=5, tail=struct.pack("<II", 6, 0)),
    "an unknown type": exif_of(b"\x06", kind=99),
    "cut off": exif_of(b"\x06")[:-9],
    "nothing but a header": exif_of(b"\x06")[:14],
    "an offset to nowhere": b"Exif\0\0II*\0\xff\xff\xff\x7f",
    "noise": b"Exif\0\0" + bytes(range(7, 90)),
}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("what", BROKEN_EXIF)
def test_an_image_whose_exif_is_broken_is_shown_as_it_is(photos, what):
    stored = noise(0, 4, 6, 3)
    for split in ("train", "val", "test"):
        save(photos / split / "only" / "x.jpg", stored, exif=BROKEN_EXIF[what], quality=100, subsampling=0)
        save(photos / split / "only" / "y.webp", stored, exif=BROKEN_EXIF[what], lossless=True)
    jpeg, webp = all_rows(image_classification("./photos").test)["image"]
    assert np.abs(jpeg - stored.astype(float)).max() < 9
    np.testing.assert_array_equal(webp, stored)


def test_images_of_varying_size_are_cropped_in_the_centre_and_resized(photos):
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = RED  # what the centre square holds
    tall = np.zeros((90, 30, 3), np.uint8)
    tall[30:60] = GREEN
    for split in ("train", "val", "test"):
        save(photos / split / "a" / "x.png", wide)
        save(photos / split / "b" / "x.png", tall)
    data = image_classification("./photos", image_size=8)
    rows = all_rows(data.test)
    for image, colour in zip(rows["image"], (RED, GREEN), strict=True):
        np.testing.assert_array_equal(image, np.broadcast_to(np.uint8(colour), (8, 8, 3)))
    assert "8x8x3 images, cropped and resized" in data.provenance
    assert image_classification("./photos").image_shape == (96, 96, 3)


def test_the_pixels_are_those_of_the_same_images_prepared_by_tfds(photos, write_set):
    import tensorflow_datasets as tfds

    images = [Image.fromarray(noise(i, 20 + i, 31 - i, 3)) for i in range(6)]
    for split in ("train", "validation", "test"):
        for i, image in enumerate(images):
            save(photos / split / f"class{i}" / "x.png", image)
    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(num_classes=6),
    }
    examples = [{"image": image, "label": i} for i, image in enumerate(images)]
    write_set("tiny", dict.fromkeys(("train", "validation", "test"), examples), features=features)
    folder = all_rows(image_classification("./photos", image_size=9).test)
    prepared = all_rows(image_classification("tiny", image_size=9).test)
    order = np.argsort(prepared["label"])
    np.testing.assert_array_equal(folder["image"], prepared["image"][order])


def test_images_of_one_size_stay_as_stored(photos):
    fill(photos)
    assert image_classification("./photos", image_size=9).image_shape == (4, 6, 3)


# Mistakes.


BREAK = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-60]),
    "cut in the header": lambda path: path.write_bytes(path.read_bytes()[:20]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("<html>404</html>"),
    "of another format": lambda path: Image.open(path).save(path, "ICO"),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "a link to nothing": lambda path: (path.unlink(), path.symlink_to("nowhere")),
}


@pytest.mark.parametrize("broken", BREAK)
def test_a_broken_image_is_named_and_nothing_is_kept(photos, tmp_path, broken):
    fill(photos / "train")
    path = photos / "train/dog/004.png"
    BREAK[broken](path)
    for arguments in ({}, {"max_resident_bytes": 1}):
        with pytest.raises(UserError, match=f"^{path} cannot be read as an image .*: replace it") as caught:
            read_all(image_classification("./photos", **arguments))
        assert "\n" not in str(caught.value)
    assert not cached(tmp_path)


def test_all_broken_images_are_named_at_once(photos, tmp_path):
    for split in ("train", "val", "test"):
        fill(photos / split)
    broken = [photos / name for name in ("train/cat/001.png", "train/dog/007.png", "val/dog/004.png")]
    for path in broken:
        path.write_text("no image")
    with pytest.raises(UserError, match="^3 files cannot be read as images: ") as caught:
        _ = image_classification("./photos").train
    line = str(caught.value)
    assert all(f"{path} (its content is not one of" in line for path in broken)
    assert "skip_unreadable=True" in line
    assert "\n" not in line
    for path in (photos / "train/cat").iterdir():
        path.write_text("no image")
    with pytest.raises(UserError, match="12 files cannot .* and 2 more: replace them"):
        _ = image_classification("./photos").train
    assert not cached(tmp_path)


@pytest.mark.parametrize("arguments", [{}, {"max_resident_bytes": 1}])
def test_broken_images_are_skipped_and_counted_on_request(photos, tmp_path, arguments):
    fill(photos / "train")
    fill(photos / "test", seed=1)
    (photos / "train/cat/001.png").write_text("no image")
    (photos / "test/dog/004.png").write_bytes((photos / "test/dog/004.png").read_bytes()[:-60])
    for _ in range(2):  # the second time from the cache
        data = image_classification("./photos", skip_unreadable=True, **arguments)
        rows = read_all(data)
        assert {split: len(r["label"]) for split, r in rows.items()} == data.identity.sizes
        assert data.identity.sizes == {"train": 17, "validation": 2, "test": 19}
        assert "skipped: 2 files that cannot be read, such as train/cat/001.png" in data.provenance
    assert data.from_cache == (not arguments)
    with pytest.raises(UserError, match=r"cannot be read"):
        read_all(image_classification("./photos", **arguments))
    (photos / "train/cat/001.png").unlink()
    (photos / "test/dog/004.png").unlink()
    without = image_classification("./photos", **arguments)
    for split, expected in read_all(without).items():
        np.testing.assert_array_equal(rows[split]["image"], expected["image"])
        np.testing.assert_array_equal(rows[split]["label"], expected["label"])
    if not arguments:
        assert without.identity == data.identity


def test_pixels_of_32_bits_are_refused(photos):
    for split in ("train", "val", "test"):
        save(photos / split / "only/x.tif", Image.fromarray(np.ones((4, 4), np.float32)))
    with pytest.raises(UserError, match="3 files .*its pixels have 32 bits; store 8 or 16 bits"):
        _ = image_classification("./photos").train


def test_an_image_that_changes_its_size_while_it_is_streamed_is_named(photos):
    fill(photos)
    source = image_classification("./photos", max_resident_bytes=1).train
    all_rows(source)
    for path in photos.rglob("*.png"):
        save(path, noise(0, 5, 5, 3))
    with pytest.raises(UserError, match=r"\.png \(its size has changed from .* to \(5, 5, 3\)"):
        all_rows(source)


@pytest.mark.parametrize(
    ("dataset", "line"),
    [
        ("./pohtos", "there is no folder .*/pohtos: did you mean .*/photos?"),
        ("../no/where", "there is no folder .*/no/where: expected .*where/train/CLASS/IMAGE.jpg or "),
        ("~no_such_user/x", "there is no folder .*no_such_user/x: expected"),
        ("./photos.zip", "photos.zip is a file: expected a folder with images by class"),
        ("./empty", "empty has no folders of classes: expected .*empty/train/CLASS/IMAGE.jpg or "),
        ("./flat", "flat has no folders of classes: expected"),
        ("./no_classes", "no_classes/train has no folders of classes: expected .*train/CLASS/IMAGE.jpg"),
        ("./empty_class", "empty_class/train/bird holds no images .*: .* fill it or remove it"),
        (
            "./above",
            "above/photos holds no images .*its subfolders cat, dog are not read; if it",
        ),
        ("./no_train", "no_train has test but no train: expected .*no_train/train/CLASS/IMAGE.jpg"),
        ("./two_names", "two_names has both validation and val: keep one of them as the validation split"),
        ("./strange", r"the class dgo of the validation split is not in .*train: rename it \(to dog\?\)"),
        ("./stranger", r"the class x of the test split is not in .*: rename it \(train has cat, dog\)"),
        ("./tfds", "tfds holds a set that TFDS prepared, .*: give its NAME"),
        ("./few", "the test split of few would be empty"),
    ],
)
def test_what_is_no_folder_of_images_by_class_is_one_line(photos, tmp_path, dataset, line):
    fill(photos)
    (tmp_path / "photos.zip").touch()
    (tmp_path / "empty").mkdir()
    save(tmp_path / "flat/x.png", noise(0, 4, 4, 3))
    save(tmp_path / "no_classes/train/x.png", noise(0, 4, 4, 3))
    fill(tmp_path / "empty_class/train", count=1)
    (tmp_path / "empty_class/train/bird").mkdir()
    fill(tmp_path / "above/photos", count=1)
    fill(tmp_path / "no_train/test", count=1)
    for name in ("train", "val", "validation"):
        fill(tmp_path / "two_names" / name, count=1)
    fill(tmp_path / "strange/train", count=1)
    fill(tmp_path / "strange/val", count=1, classes=("cat", "dgo"))
    fill(tmp_path / "stranger/train", count=1)
    fill(tmp_path / "stranger/test", count=1, classes=("cat", "x"))
    (tmp_path / "tfds").mkdir()
    (tmp_path / "tfds/dataset_info.json").touch()
    fill(tmp_path / "few/train", count=1)
    data = image_classification(dataset)  # nothing is read yet
    with pytest.raises(UserError, match=line) as caught:
        _ = data.train
    assert "\n" not in str(caught.value)
    assert not cached(tmp_path)


# Names and paths.


def test_a_folder_need_not_be_written_as_a_path(photos, tmp_path, monkeypatch):
    fill(photos)
    fill(tmp_path / "pets of 2026")
    fill(tmp_path / "my/pets")
    monkeypatch.setenv("HOME", str(tmp_path))
    for dataset in ("photos", "photos/", "./photos", str(photos), "~/photos"):
        assert image_classification(dataset).identity.name == "photos"
    monkeypatch.chdir(photos)
    assert image_classification(".").identity.name == "photos"
    monkeypatch.chdir(tmp_path)
    assert image_classification("my/pets").identity.name == "pets"
    assert image_classification("pets of 2026").identity.name == "pets of 2026"
    monkeypatch.setenv("HOME", str(photos))
    assert image_classification("~").identity.name == "photos"
    with pytest.raises(UserError, match=r"my/pest is not prepared in .*no folder of images at that path"):
        _ = image_classification("my/pest").train


def test_the_name_of_a_set_means_the_set_and_a_path_the_folder(photos, tmp_path, write_set):
    write_set("tiny", {"train": grey_examples(20), "test": grey_examples(5)})
    fill(tmp_path / "tiny")
    fill(tmp_path / "digits")
    assert image_classification("tiny").image_shape == (4, 4, 1)
    assert image_classification("./tiny").image_shape == (4, 6, 3)
    assert image_classification("digits").image_shape == (8, 8, 1)
    assert image_classification("digits/").image_shape == (4, 6, 3)


# Identity and cache.


def test_the_second_start_reads_the_cache_and_the_folder_is_left_alone(photos, tmp_path):
    fill(photos)
    before = sorted(photos.rglob("*"))
    mode = stat.S_IMODE(photos.stat().st_mode)
    photos.chmod(0o555)
    try:
        first, second = image_classification("./photos"), image_classification("./photos")
        rows, again = all_rows(first.train), all_rows(second.train)
    finally:
        photos.chmod(mode)
    assert (first.from_cache, second.from_cache) == (False, True)
    assert first.identity == second.identity
    for name, array in rows.items():
        np.testing.assert_array_equal(again[name], array)
    assert sorted(photos.rglob("*")) == before
    assert [path.parent for path in cached(tmp_path)] == [tmp_path / "cache/dl/decoded"]


def change(path):
    """Other pixels in a file of the same size."""
    old = path.stat()
    pixels = np.asarray(Image.open(path)).copy()
    save(path, 255 - pixels, compress_level=0)
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns + 1))
    assert path.stat().st_size == old.st_size


CHANGES = {
    "changed": lambda folder: change(folder / "cat/000.bmp"),
    "added": lambda folder: save(folder / "cat/999.bmp", noise(5, 4, 4, 3)),
    "removed": lambda folder: (folder / "cat/000.bmp").unlink(),
    "renamed": lambda folder: (folder / "cat/000.bmp").rename(folder / "cat/999.bmp"),
    "moved": lambda folder: (folder / "cat/009.bmp").rename(folder / "dog/009.bmp"),  # next in order
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_file_that_was(photos, what, tmp_path):
    for i in range(20):
        save(photos / ("cat" if i < 10 else "dog") / f"{i:03d}.bmp", noise(i, 4, 4, 3))
    before = image_classification("./photos").identity
    CHANGES[what](photos)
    data = image_classification("./photos")
    assert not data.from_cache
    assert data.identity.checksum != before.checksum
    fresh = all_rows(image_classification("./photos", max_resident_bytes=1).train)
    np.testing.assert_array_equal(all_rows(data.train)["image"], fresh["image"])
    assert image_classification("./photos").from_cache
    assert len(cached(tmp_path)) == 1  # the stale one was replaced


@pytest.mark.parametrize("arguments", [{}, {"max_resident_bytes": 1}])
def test_the_identity_is_of_the_content_not_of_the_place_or_the_time(photos, tmp_path, arguments):
    fill(photos / "train")
    fill(photos / "val", seed=1)
    copy = tmp_path / "elsewhere/photos"
    shutil.copytree(photos, copy)
    (copy / "val").rename(copy / "validation")
    for path in copy.rglob("*.png"):
        os.utime(path, (1, 1))
    first, second = (image_classification(str(path), **arguments).identity for path in (photos, copy))
    assert first == second
    (copy / "train/cat/000.png").unlink()
    assert image_classification(str(copy), **arguments).identity.checksum != first.checksum


def test_each_image_size_has_a_cache_of_its_own(photos, tmp_path):
    fill(photos)
    save(photos / "cat/large.png", noise(9, 8, 8, 3))
    for _ in range(2):
        for size in (5, 7):
            rows = all_rows(image_classification("./photos", image_size=size).train)
            assert rows["image"].shape[1:] == (size, size, 3)
    assert len(cached(tmp_path)) == 2
    assert image_classification("./photos", image_size=5).from_cache


# Folders too large for memory.


def test_a_large_folder_is_read_by_several_threads_and_gives_the_same_rows(photos, tmp_path):
    fill(photos, count=30)
    streamed = image_classification("./photos", max_resident_bytes=1)
    read = {split: getattr(streamed, split) for split in ("train", "validation", "test")}
    assert not cached(tmp_path)
    resident = image_classification("./photos")
    assert streamed.identity.sizes == resident.identity.sizes
    wrong = []

    def compare(seed):
        for split, source in read.items():
            expected = getattr(resident, split)
            assert source.spec == expected.spec
            for rows in np.random.default_rng(seed).integers(0, len(expected), (10, 8)):
                if any(not np.array_equal(a, expected[rows][name]) for name, a in source[rows].items()):
                    wrong.append((split, rows))

    threads = [threading.Thread(target=compare, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# The real thing.


def test_flower_photos(photos, tmp_path):
    folder = Path(REAL_DATA or "/nowhere").parent / "raw/flower_photos_sample"
    if not folder.is_dir():
        pytest.skip("needs raw/flower_photos_sample beside the folder that TFDS_DATA_DIR names")
    data = image_classification(str(folder), image_size=28)
    assert data.class_names == ("daisy", "dandelion", "roses", "sunflowers", "tulips")
    assert data.identity.sizes == {"train": 13, "validation": 2, "test": 10}
    rows = all_rows(data.test)
    np.testing.assert_array_equal(rows["label"], np.repeat(np.arange(5), 2))
    with Image.open(sorted((folder / "val/tulips").iterdir())[1]) as photo:
        pixels = np.asarray(photo)
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = pixels[top : top + side, left : left + side].astype(np.float32)
    expected = np.asarray(jax.image.resize(square, (28, 28, 3), "linear", antialias=True))
    assert np.abs(rows["image"][-1] - expected).max() < 2  # Pillow rounds after each axis
    assert image_classification(str(folder), image_size=28).from_cache
    assert len(cached(tmp_path)) == 1
