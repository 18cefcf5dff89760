import json
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dl.data import image_classification
from dl.data.carve import split_rows, stratified
from dl.data.images.records import RecordSource
from dl.data.permutation import random_order
from dl.errors import UserError
from tests.data.tiny_sets import grey_examples, noise


def all_rows(source):
    return source[np.arange(len(source))]


def as_set(images, labels):
    return {(image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)}


# Splits.


def test_mnist_sized_train_gives_six_thousand_for_validation():
    rows = split_rows("mnist", {"train": 60000, "test": 10000}, 0.1)
    sizes = {used: 10000 if r is None else len(r) for used, (_, r) in rows.items()}
    assert sizes == {"train": 54000, "validation": 6000, "test": 10000}


@pytest.mark.parametrize(
    ("official", "expected"),
    [
        ({"train": 50, "validation": 7, "test": 9}, {"train": 50, "validation": 7, "test": 9}),
        ({"train": 50, "test": 9}, {"train": 45, "validation": 5, "test": 9}),
        ({"train": 50, "validation": 7}, {"train": 45, "validation": 5, "test": 7}),
        ({"train": 50}, {"train": 36, "validation": 4, "test": 10}),
    ],
)
def test_splits_are_disjoint_and_cover(official, expected):
    rows = split_rows("it", official, 0.1)
    taken = [
        (split, int(row))
        for split, r in rows.values()
        for row in (range(official[split]) if r is None else r)
    ]
    assert sorted(taken) == sorted((s, row) for s, n in official.items() for row in range(n))
    sizes = {used: official[s] if r is None else len(r) for used, (s, r) in rows.items()}
    assert sizes == expected


def test_a_missing_test_split_is_the_official_validation_split():
    assert split_rows("it", {"train": 50, "validation": 7}, 0.1)["test"] == ("validation", None)


def test_carving_takes_the_same_rows_for_ever():
    """Numbers measured on a split are comparable only while the split stays."""
    labels = np.arange(50) % 5
    rows = split_rows("it", {"train": 50, "test": 9}, 0.1, labels)["validation"][1]
    assert rows.tolist() == [3, 20, 21, 29, 42]
    plain = split_rows("it", {"train": 2000, "test": 9}, 0.1, np.arange(2000) % 2)["validation"][1]
    assert plain[:5].tolist() == [2, 17, 25, 27, 32]


@given(st.lists(st.sampled_from([0, 1, 1, 2, 2, 2, 2, 7]), min_size=1, max_size=200), st.floats(0, 1))
def test_a_stratified_choice_has_each_class_by_its_share(labels, fraction):
    labels = np.array(labels)
    count = round(fraction * len(labels))
    chosen = stratified(labels, count, 3, 4)
    assert chosen.sum() == count
    classes, sizes = np.unique(labels, return_counts=True)
    taken = np.array([chosen[labels == c].sum() for c in classes])
    assert (np.abs(taken - sizes * count / len(labels)) <= len(classes)).all()
    if count >= len(classes) and len(labels) - count >= len(classes):
        assert (taken[sizes > 1] >= 1).all()
        assert (taken[sizes > 1] < sizes[sizes > 1]).all()


@pytest.mark.parametrize(
    "official", [{"train": 300}, {"train": 300, "test": 40}, {"train": 300, "validation": 5}]
)
def test_small_classes_do_not_vanish_from_what_is_carved(official):
    labels = np.repeat(np.arange(12), [4, 5, 6] * 3 + [60, 85, 110])[random_order(300, 1, 2)]
    rows = split_rows("it", {"train": 300, **official}, 0.1, labels)
    for used, (split, taken) in rows.items():
        if taken is not None:
            assert split == "train"
            assert set(labels[taken]) == set(range(12)), used


def test_rows_that_stand_sorted_by_class_are_carved_without_labels():
    for each in (13, 20, 40):
        rows = split_rows("it", {"train": 10 * each}, 0.1)
        assert all(len(set((taken // each).tolist())) == 10 for _, taken in rows.values())


@pytest.mark.parametrize(
    ("official", "empty"),
    [
        ({"train": 3, "test": 1}, "validation"),
        ({"train": 0, "validation": 1, "test": 1}, "train"),
        ({"train": 9, "validation": 1, "test": 0}, "test"),
        ({"train": 2}, "test"),
    ],
)
def test_an_empty_split_is_named(official, empty):
    with pytest.raises(UserError, match=f"the {empty} split of it would be empty"):
        split_rows("it", official, 0.1)


def test_a_set_without_train_is_refused(write_set):
    write_set("tiny", {"test": grey_examples(3)})
    with pytest.raises(UserError, match=r"no train split; it has \['test'\]"):
        _ = image_classification("tiny").train


# What is read.


def test_grey_images_are_read_as_written(write_set):
    examples = {"train": grey_examples(20), "test": grey_examples(5, seed=1)}
    write_set("tiny", examples, num_shards=3)
    data = image_classification("tiny", validation_fraction=0.25)
    assert (data.num_classes, data.class_names) == (3, ("red", "green", "blue"))
    assert data.image_shape == (4, 4, 1)
    assert data.notice is None
    read = {split: all_rows(getattr(data, split)) for split in ("train", "validation", "test")}
    assert {split: len(rows["label"]) for split, rows in read.items()} == data.identity.sizes
    assert data.identity.sizes == {"train": 15, "validation": 5, "test": 5}
    assert (read["train"]["image"].dtype, read["train"]["label"].dtype) == (np.uint8, np.int32)
    for official, parts in {"train": ("train", "validation"), "test": ("test",)}.items():
        got = set().union(*(as_set(read[p]["image"], read[p]["label"]) for p in parts))
        written = [np.asarray(e["image"])[..., None] for e in examples[official]]
        assert got == as_set(written, [e["label"] for e in examples[official]])


def test_rgb_images_and_other_features_beside_them(write_set):
    import tensorflow_datasets as tfds

    pixels = noise(0, 10, 5, 6, 3)
    features = {
        "id": tfds.features.Text(),
        "image": tfds.features.Image(shape=(5, 6, 3), encoding_format="png"),
        "kind": tfds.features.ClassLabel(num_classes=2),
        "label": tfds.features.ClassLabel(num_classes=10),
        "weights": tfds.features.Tensor(shape=(3,), dtype=np.float32),
    }
    examples = [
        {
            "id": str(i),
            "image": Image.fromarray(pixels[i]),
            "kind": 1,
            "label": i,
            "weights": np.ones(3, np.float32),
        }
        for i in range(10)
    ]
    write_set("tiny", {"train": examples, "validation": examples, "test": examples}, features=features)
    data = image_classification("tiny")
    assert data.class_names == tuple("0123456789")
    rows = all_rows(data.test)
    np.testing.assert_array_equal(rows["image"], pixels[rows["label"]])
    assert set(rows["label"].tolist()) == set(range(10))


@pytest.mark.parametrize("encoding", ["none", "bytes", "zlib"])
def test_a_tensor_without_channels_is_an_image_with_one(write_set, encoding):
    import tensorflow_datasets as tfds

    pixels = noise(0, 10, 3, 5)
    features = {
        "pixels": tfds.features.Tensor(shape=(3, 5), dtype=np.uint8, encoding=encoding),
        "digit": tfds.features.ClassLabel(num_classes=10),
    }
    examples = [{"pixels": pixels[i], "digit": i} for i in range(10)]
    splits = {"train": examples, "validation": examples, "test": examples}
    write_set("tiny", splits, features=features, supervised_keys=None)
    rows = all_rows(image_classification("tiny").test)
    np.testing.assert_array_equal(rows["image"], pixels[rows["label"], :, :, None])


def test_images_of_varying_size_are_cropped_in_the_centre_and_resized(write_set):
    import tensorflow_datasets as tfds

    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = (200, 100, 50)  # what the centre square holds
    tall = np.zeros((90, 30), np.uint8)  # grey among RGB
    tall[30:60] = 77
    features = {
        "image": tfds.features.Image(shape=(None, None, None)),
        "label": tfds.features.ClassLabel(num_classes=2),
    }
    examples = [
        {"image": Image.fromarray(wide), "label": 0},
        {"image": Image.fromarray(tall), "label": 1},
    ]
    write_set("tiny", dict.fromkeys(("train", "validation", "test"), examples), features=features)
    data = image_classification("tiny", image_size=8)
    assert data.image_shape == (8, 8, 3)
    rows = all_rows(data.test)
    colours = {0: (200, 100, 50), 1: (77, 77, 77)}
    for image, label in zip(rows["image"], rows["label"], strict=True):
        np.testing.assert_array_equal(image, np.broadcast_to(colours[int(label)], (8, 8, 3)))
    assert image_classification("tiny").train.spec["image"].shape == (96, 96, 3)


def test_images_of_one_size_are_stored_as_they_are_and_read_at_the_size_that_was_asked_for(write_set):
    write_set("tiny", {"train": grey_examples(20), "test": grey_examples(5, seed=1)})
    for image_size, height in ((None, 4), (4, 4), (8, 8), (2, 2)):
        data = image_classification("tiny", image_size=image_size)
        assert data.image_shape == data.train.spec["image"].shape == (4, 4, 1)
        rows = all_rows(data.train)
        prepared = data.preprocess(rows)["image"]
        assert prepared.shape == (len(rows["label"]), height, height, 1)
        if height == 4:
            np.testing.assert_allclose(prepared, rows["image"] / 255, rtol=1e-6)


def test_what_is_no_image_classification_set_is_refused_with_its_features(write_set):
    import tensorflow_datasets as tfds

    label = tfds.features.ClassLabel(num_classes=2)
    features = {"text": tfds.features.Text(), "label": label}
    write_set("words", {"train": [{"text": "a", "label": 0}]}, features=features, supervised_keys=None)
    with pytest.raises(UserError, match=r"no uint8 image.*label \(ClassLabel\), text \(Text\)"):
        _ = image_classification("words").num_classes
    image = tfds.features.Image(shape=(4, 4, 1))
    example = {
        "left": grey_examples(1)[0]["image"],
        "right": grey_examples(1)[0]["image"],
        "label": 0,
    }
    features = {"left": image, "right": image, "label": label}
    write_set("pairs", {"train": [example]}, features=features, supervised_keys=None)
    with pytest.raises(UserError, match=r"several uint8 images \(left, right\)"):
        _ = image_classification("pairs").num_classes


def test_a_label_out_of_range_is_named(write_set):
    folder = write_set("tiny", {"train": grey_examples(20), "test": grey_examples(5)})
    text = (folder / "features.json").read_text()
    (folder / "features.json").write_text(text.replace('"numClasses": "3"', '"numClasses": "2"'))
    (folder / "label.labels.txt").write_text("red\ngreen\n")
    with pytest.raises(UserError, match="has the label 2, expected 0 to 1"):
        _ = image_classification("tiny").train


def test_another_file_format_says_what_to_do(write_set):
    folder = write_set("tiny", {"train": grey_examples(20), "test": grey_examples(5)})
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    with pytest.raises(UserError, match=r"stored as tfrecord.*file_format='array_record'"):
        _ = image_classification("tiny").train


# How a set is found.


def test_naming_a_set_reads_nothing(data_dir):
    data_dir.rmdir()
    data = image_classification("tiny")
    with pytest.raises(UserError, match="does not exist"):
        _ = data.train


def test_what_is_known_from_the_description_needs_no_records(write_set):
    folder = write_set("tiny", {"train": grey_examples(20), "test": grey_examples(5)})
    (folder / "tiny-train.array_record-00000-of-00001").unlink()
    data = image_classification("tiny")
    assert (data.num_classes, data.image_shape) == (3, (4, 4, 1))
    with pytest.raises(UserError, match="tiny-train"):
        _ = data.train


def test_the_newest_finished_version_unless_one_is_named(write_set, data_dir):
    splits = {"train": grey_examples(20), "test": grey_examples(5)}
    for version in ("2.0.0", "10.0.0"):
        write_set("tiny", splits, version=version)
    (data_dir / "tiny/11.0.0").mkdir()  # half-prepared
    (data_dir / "tiny/incomplete.X_12.0.0").mkdir()
    assert image_classification("tiny").identity.version == "10.0.0"
    assert image_classification("tiny:2.0.0").identity.version == "2.0.0"
    with pytest.raises(UserError, match=r"tiny:3\.0\.0 is not prepared .* 2\.0\.0, 10\.0\.0"):
        _ = image_classification("tiny:3.0.0").identity


def test_configs(write_set, data_dir):
    splits = {"train": grey_examples(20), "test": grey_examples(5)}
    write_set("tiny", splits, config="dark")
    write_set("tiny", splits, config="light")  # TFDS writes the default's name: the last one here
    assert image_classification("tiny").identity.name == "tiny/light"
    assert image_classification("tiny/dark:1.0.0").identity.name == "tiny/dark"
    with pytest.raises(UserError, match="no config 'pale': choose one of tiny/dark, tiny/light"):
        _ = image_classification("tiny/pale").identity
    (data_dir / "tiny/.config/metadata.json").unlink()
    with pytest.raises(UserError, match="needs a config: choose one of tiny/dark, tiny/light"):
        _ = image_classification("tiny").identity


@pytest.mark.parametrize("dataset", ["tiny:1", "", "a b", "tiny-2", "1"])
def test_a_name_that_is_none_is_refused_at_once(dataset):
    with pytest.raises(UserError, match="expected NAME"):
        image_classification(dataset)


@pytest.mark.parametrize("arguments", [{"validation_fraction": 0.0}, {"image_size": 0}])
def test_arguments_out_of_range_are_refused_by_name(arguments):
    with pytest.raises(UserError, match=next(iter(arguments))):
        image_classification("tiny", **arguments)


def test_an_unknown_name_is_answered_with_the_nearest(write_set, data_dir):
    write_set("tiny", {"train": grey_examples(20), "test": grey_examples(5)})
    with pytest.raises(UserError, match=f"tinny is not prepared in {data_dir}: did you mean tiny"):
        _ = image_classification("tinny").train
    with pytest.raises(UserError, match="did you mean mnist"):
        _ = image_classification("minst").train
    with pytest.raises(UserError, match="tfds build svhn_cropped --file_format=array_record"):
        _ = image_classification("svhn_cropped").train


@pytest.mark.parametrize("dataset", ["auto", "tiny"])
def test_a_data_folder_that_is_none_is_the_users_mistake(data_dir, monkeypatch, dataset):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir / "missing"))
    with pytest.raises(UserError, match="missing does not exist"):
        _ = image_classification(dataset).train
    (data_dir / "file").touch()
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir / "file"))
    with pytest.raises(UserError, match="file is not a folder"):
        _ = image_classification(dataset).train


# Sets too large for memory.


def test_a_large_set_is_read_by_the_batch_and_gives_the_same_rows(write_set, data_dir):
    write_set("tiny", {"train": grey_examples(40), "test": grey_examples(5)}, num_shards=3)
    resident, streamed = (
        image_classification("tiny"),
        image_classification("tiny", max_resident_bytes=1),
    )
    indices = np.array([7, 0, 7, 31])
    for split in ("train", "validation", "test"):
        one, other = getattr(resident, split), getattr(streamed, split)
        assert len(one) == len(other)
        assert one.spec == other.spec
        rows = indices % len(one)
        for name, array in one[rows].items():
            np.testing.assert_array_equal(other[rows][name], array)
    assert not streamed.from_cache
    assert streamed.identity.sizes == resident.identity.sizes


def test_the_labels_of_a_large_set_are_read_once_and_its_splits_are_stratified(write_set, monkeypatch):
    examples = [{**example, "label": int(i % 20 == 0)} for i, example in enumerate(grey_examples(80))]
    write_set("tiny", {"train": examples}, num_shards=3)
    resident = image_classification("tiny")
    for _ in range(2):
        streamed = image_classification("tiny", max_resident_bytes=1)
        for split in ("train", "validation", "test"):
            labels = all_rows(getattr(streamed, split))["label"]
            np.testing.assert_array_equal(labels, all_rows(getattr(resident, split))["label"])
            assert set(labels.tolist()) == {0, 1}
        monkeypatch.setattr(RecordSource, "labels", None)  # the second start reads a cache


def test_a_large_set_is_read_by_several_threads_at_once(write_set):
    write_set("tiny", {"train": grey_examples(60), "test": grey_examples(5)}, num_shards=2)
    source = image_classification("tiny", max_resident_bytes=1).train
    expected = all_rows(image_classification("tiny").train)
    wrong = []

    def read(seed):
        for rows in np.random.default_rng(seed).integers(0, len(source), (20, 8)):
            if not np.array_equal(source[rows]["image"], expected["image"][rows]):
                wrong.append(rows)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# The real thing.


def test_mnist(real_mnist):
    import tensorflow_datasets as tfds

    data = image_classification("mnist")
    assert data.identity.sizes == {"train": 54000, "validation": 6000, "test": 10000}
    assert data.class_names == tuple("0123456789")
    official = tfds.data_source("mnist", data_dir=real_mnist, split="test", download=False)
    rows = data.test[np.arange(100)]
    for at in range(100):
        np.testing.assert_array_equal(rows["image"][at], official[at]["image"])
        assert rows["label"][at] == official[at]["label"]
    again = image_classification("mnist")
    assert again.identity == data.identity
    assert again.from_cache
    assert again.load_seconds < 1
