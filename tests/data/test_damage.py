"""Every way in which a prepared set can be broken is one line that names the file."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from dl.data import image_classification
from dl.errors import UserError
from tests.data.tiny_sets import grey_examples

SHARD = "tiny-train.array_record-00001-of-00002"


@pytest.fixture
def folder(write_set):
    splits = {"train": grey_examples(400, size=16), "test": grey_examples(5, size=16)}
    import tensorflow_datasets as tfds

    features = {
        "image": tfds.features.Image(shape=(16, 16, 1)),
        "label": tfds.features.ClassLabel(num_classes=3),
    }
    return write_set("tiny", splits, features=features, num_shards=2)


def read(**arguments):
    source = image_classification("tiny", **arguments).train
    return source[np.arange(len(source))]


def overwrite(path, at, content):
    with path.open("r+b") as file:
        file.seek(at if at >= 0 else path.stat().st_size + at)
        file.write(content)


def flip(path, at):
    byte = path.read_bytes()[at]
    overwrite(path, at, bytes([byte ^ 0xFF]))


def truncate(path, size):
    with path.open("r+b") as file:
        file.truncate(size)


def refuse(match):
    return pytest.raises(UserError, match=rf"{match}.*delete .*tiny/1.0.0 and prepare")


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null", "\x00\xff", '{"name": 3', "[" * 99999])
def test_a_broken_description(folder, name, content):
    (folder / name).write_text(content, "latin-1")
    with refuse(name) as caught:
        read()
    assert "\n" not in str(caught.value)


def test_a_missing_description_of_the_features(folder):
    (folder / "features.json").unlink()
    with refuse("features.json"):
        read()


def test_too_few_class_names(folder):
    (folder / "label.labels.txt").write_text("one\ntwo\n")
    with refuse("label.labels.txt is damaged .2 class names for 3 classes"):
        read()


def test_a_missing_shard(folder):
    (folder / SHARD).unlink()
    with refuse(SHARD):
        read()


BREAK_SHARD = {
    "empty": lambda path: truncate(path, 0),
    "one byte short": lambda path: truncate(path, path.stat().st_size - 1),
    "half": lambda path: truncate(path, path.stat().st_size // 2),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"more"),
    "text": lambda path: path.write_text("not found\n" * 20000),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "noise": lambda path: path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size)),
    "header zeroed": lambda path: overwrite(path, 0, bytes(4096)),
    "flipped in the first record": lambda path: flip(path, 400),
    "flipped in a later record": lambda path: flip(path, 30000),
    "last block zeroed": lambda path: overwrite(path, -65536, bytes(65536)),
}


@pytest.mark.parametrize("broken", BREAK_SHARD)
def test_a_broken_shard(folder, broken):
    BREAK_SHARD[broken](folder / SHARD)
    with refuse(SHARD) as caught:
        read()
    assert "\n" not in str(caught.value)
    with refuse(SHARD):
        read(max_resident_bytes=1)


@pytest.mark.slow
def test_no_flipped_byte_changes_what_is_read(folder):
    expected = read()
    original = (folder / SHARD).read_bytes()
    for at in np.random.default_rng(0).integers(0, len(original), 25):
        flip(folder / SHARD, at)
        try:
            rows = read(max_resident_bytes=1)
        except UserError:
            pass
        else:
            for name, array in expected.items():
                np.testing.assert_array_equal(rows[name], array)
        (folder / SHARD).write_bytes(original)


@pytest.mark.parametrize("difference", [-1, 1])
def test_a_wrong_number_of_records(folder, difference):
    info = json.loads((folder / "dataset_info.json").read_text())
    lengths = info["splits"][0]["shardLengths"]
    lengths[1] = str(int(lengths[1]) + difference)
    (folder / "dataset_info.json").write_text(json.dumps(info))
    with refuse(f"{SHARD} is damaged .it holds 200 records, not {200 + difference}"):
        read()


@pytest.mark.parametrize("difference", ["another shape", "cut", "text"])
def test_an_image_that_cannot_be_one(write_set, difference):
    def example(i):
        if i == 3:
            buffer = io.BytesIO()
            Image.new("L", (4, 5)).save(buffer, "PNG")
            broken = {"cut": buffer.getvalue()[:-30], "text": b"no image at all"}
            return {"image": io.BytesIO(broken.get(difference, buffer.getvalue())), "label": 0}
        return grey_examples(5)[i]

    examples = [example(i) for i in range(5)]
    write_set("tiny", {"train": grey_examples(20), "test": examples})
    with refuse("record . of split 'test' in "):
        read()


def test_auto_does_not_hide_a_broken_set(folder, data_dir):
    (data_dir / "tiny").rename(data_dir / "mnist")
    (data_dir / "mnist/1.0.0/dataset_info.json").write_text("{")
    with pytest.raises(UserError, match=r"mnist/1\.0\.0/dataset_info.json is damaged"):
        _ = image_classification("auto").train
