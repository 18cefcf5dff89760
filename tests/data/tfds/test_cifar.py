import functools
import gzip
import hashlib
import io
import os
import tarfile
import time
import types
from pathlib import Path

import numpy as np
import pytest
import requests
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.download import checksums, download_manager
from tensorflow_datasets.core.features import image_feature
from tensorflow_datasets.image_classification import cifar

from dl.data import image_classification
from dl.data.tfds import builders
from dl.data.tfds import download as raw_files
from dl.errors import UserError
from tests.data.tiny_sets import grey_examples, noise

OFFICIAL = {"cifar10": cifar.Cifar10, "cifar100": cifar.Cifar100}
URLS = {name: f"https://www.cs.toronto.edu/~kriz/cifar-{name[5:]}-binary.tar.gz" for name in OFFICIAL}
FILES = {name: url.rpartition("/")[2] for name, url in URLS.items()}
BATCHES = [f"data_batch_{number}.bin" for number in range(1, 6)]


def rows_of(seed, size, *num_classes):
    """Returns rows as they lie in a file: labels, then pixels channel by channel."""
    rows = noise(seed, size, len(num_classes) + 3072)
    for column, number in enumerate(num_classes):
        rows[:, column] %= number
    return rows


# Five files of 4 rows and one of 6, as CIFAR-10's have 10,000; one of 20 and one of 6, as CIFAR-100's.
ROWS = {
    "cifar10": {"train": rows_of(0, 20, 10), "test": rows_of(1, 6, 10)},
    "cifar100": {"train": rows_of(2, 20, 20, 100), "test": rows_of(3, 6, 20, 100)},
}


def content_of(name):
    """Returns the files of an archive by their paths in it."""
    train, test = (ROWS[name][split] for split in ("train", "test"))
    if name == "cifar10":
        parts = [part.tobytes() for part in np.split(train, 5)]
        files = {"batches.meta.txt": b"".join(b"class %d\n" % k for k in range(10)) + b"\n"}
        files |= dict(zip(BATCHES, parts, strict=True)) | {"test_batch.bin": test.tobytes()}
        return {f"cifar-10-batches-bin/{file}": content for file, content in files.items()}
    names = {
        f"{kind}_label_names.txt": b"".join(b"%s %d\n" % (kind.encode(), k) for k in range(number))
        for kind, number in {"coarse": 20, "fine": 100}.items()
    }
    files = {**names, "train.bin": train.tobytes(), "test.bin": test.tobytes()}
    return {f"cifar-100-binary/{file}": content for file, content in files.items()}


def packed(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in reversed(files):  # any order will do
            member = tarfile.TarInfo(name)
            member.size = len(files[name])
            archive.addfile(member, io.BytesIO(files[name]))
    return buffer.getvalue()


@pytest.fixture
def put_archive(data_dir, monkeypatch):
    """Puts an archive into the data folder, and lets TFDS take its checksum for the real one's."""

    def put(name, content, place="manual"):
        info = checksums.UrlInfo(
            tfds.core.utils.Size(len(content)), hashlib.sha256(content).hexdigest(), FILES[name]
        )
        infos = {**checksums.get_all_url_infos(), URLS[name]: info}
        monkeypatch.setattr(checksums, "get_all_url_infos", lambda: infos)
        monkeypatch.setattr(builders.BUILDERS[name], "url_infos", {URLS[name]: info})
        path = data_dir / place / FILES[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    return put


@pytest.fixture
def offline(monkeypatch):
    attempts = []

    def refuse(self, request, **arguments):
        attempts.append(request.url)
        raise requests.ConnectionError("no network")

    monkeypatch.setattr(requests.Session, "send", refuse)
    return attempts


@pytest.fixture
def official_builders(monkeypatch, tmp_path):
    """TFDS's own builders on the same rows, with the little of TensorFlow that they call replaced."""
    files = types.SimpleNamespace(GFile=open)
    monkeypatch.setattr(cifar, "tf", types.SimpleNamespace(io=types.SimpleNamespace(gfile=files)))
    encode = image_feature._ImageEncoder._encode_pil_image
    monkeypatch.setattr(
        image_feature._ImageEncoder, "_encode_image", lambda self, array: encode(self, Image.fromarray(array))
    )

    def extract(self, url):
        (name,) = (name for name in URLS if URLS[name] == url)
        for path, content in content_of(name).items():
            (tmp_path / "extracted" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "extracted" / path).write_bytes(content)
        return os.fspath(tmp_path / "extracted")

    monkeypatch.setattr(download_manager.DownloadManager, "download_and_extract", extract)
    tfds.disable_progress_bar()

    def prepare(name):
        builder = OFFICIAL[name](data_dir=tmp_path / "official")
        builder.download_and_prepare(
            file_format="array_record", download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )
        return builder

    return prepare


def all_rows(source):
    return source[np.arange(len(source))]


@pytest.mark.parametrize("name", OFFICIAL)
def test_the_result_is_what_tfds_own_builder_writes(name, put_archive, data_dir, offline, official_builders):
    put_archive(name, packed(content_of(name)))
    _ = image_classification(name).train
    official = official_builders(name)
    ours = data_dir / name / "3.0.2"
    theirs = Path(official.data_dir)
    records = sorted(path.name for path in theirs.glob("*.array_record*"))
    assert len(records) == 2
    for record in [*records, "features.json"]:
        assert (ours / record).read_bytes() == (theirs / record).read_bytes()
    assert sorted(path.name for path in ours.iterdir()) == sorted(path.name for path in theirs.iterdir())
    read = tfds.builder_from_directory(ours).info
    assert repr(read.features) == repr(official.info.features)
    assert {split: info.num_examples for split, info in read.splits.items()} == {"train": 20, "test": 6}
    assert read.supervised_keys == official.info.supervised_keys


@pytest.mark.parametrize("place", ["manual", "downloads/manual"])
@pytest.mark.parametrize("name", OFFICIAL)
def test_the_archive_is_enough(name, place, put_archive, data_dir, offline, capfd):
    put_archive(name, packed(content_of(name)), place)
    data = image_classification(name)
    assert data.identity.sizes == {"train": 18, "validation": 2, "test": 6}
    assert (data.identity.name, data.identity.version, data.notice) == (name, "3.0.2", None)
    assert data.image_shape == (32, 32, 3)
    names = {"cifar10": ("class 3", 10), "cifar100": ("fine 3", 100)}[name]
    assert (data.class_names[3], data.num_classes) == names
    read = {image.tobytes(): int(label) for image, label in zip(*all_rows(data.test).values(), strict=True)}
    rows = ROWS[name]["test"]
    pixels = np.stack([rows[:, -3072:][:, c * 1024 : (c + 1) * 1024] for c in range(3)], axis=-1)
    expected = {p.tobytes(): int(row[-3073]) for p, row in zip(pixels, rows, strict=True)}
    assert read == expected
    examples = tfds.data_source(name, data_dir=data_dir, split="test", download=False)
    assert sorted(example["id"] for example in examples) == [b"test_%05d" % k for k in range(6)]
    if name == "cifar100":
        coarse = {example["id"]: example["coarse_label"] for example in examples}
        assert [coarse[b"test_%05d" % k] for k in range(6)] == rows[:, 0].tolist()
    assert not offline
    assert capfd.readouterr() == ("", "")


def changed(name, **contents):
    """Returns the archive's files; of `contents` (dots as __) one is replaced, or left out where None."""
    files = content_of(name)
    prefix = next(iter(files)).partition("/")[0]
    files |= {f"{prefix}/{file.replace('__', '.')}": content for file, content in contents.items()}
    return packed({file: content for file, content in files.items() if content is not None})


@pytest.mark.parametrize(
    ("name", "archive", "reason"),
    [
        ("cifar10", b"no gzip", "gzip"),
        ("cifar10", gzip.compress(b"no archive", mtime=0), "(truncated|too short|bad|empty|invalid) header"),
        ("cifar10", packed(content_of("cifar10"))[:-2000], "end-of-stream|Compressed file|unexpected end"),
        (
            "cifar10",
            changed("cifar10", data_batch_4__bin=None),
            "cifar-10-batches-bin/data_batch_4.bin is missing",
        ),
        ("cifar100", packed(content_of("cifar10")), "cifar-100-binary/coarse_label_names.txt is missing"),
        ("cifar10", changed("cifar10", test_batch__bin=b"\0" * 6145), "6145 bytes, expected rows of 3073"),
        ("cifar10", changed("cifar10", test_batch__bin=b""), "0 bytes, expected rows of 3073"),
        ("cifar100", changed("cifar100", train__bin=b"\0" * 3073), "3073 bytes, expected rows of 3074"),
        ("cifar10", changed("cifar10", test_batch__bin=b"\x0a" + bytes(3072)), "is 10, expected 0 to 9"),
        ("cifar10", changed("cifar10", batches__meta__txt=b"a\nb\n"), "ClassLabel.*names|names.*10"),
    ],
)
def test_an_archive_of_another_structure_is_one_line(name, archive, reason, put_archive, data_dir):
    put_archive(name, archive)
    with pytest.raises(UserError, match=f"{FILES[name]} is not an archive of CIFAR .*({reason})") as caught:
        _ = image_classification(name).train
    assert "\n" not in str(caught.value)
    assert not (data_dir / name).exists()


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: b"\0" + content[1:]])
def test_an_archive_with_another_checksum_is_refused(damage, put_archive, data_dir, offline):
    path = put_archive("cifar10", packed(content_of("cifar10")))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=f"manual/{path.name} is not the file of .*delete it and download it"):
        _ = image_classification("cifar10").train
    assert not offline


def test_the_checksums_are_those_that_tfds_publishes():
    known = {name: builders.BUILDERS[name].raw_urls() for name in OFFICIAL}
    assert known == {name: {FILES[name]: URLS[name]} for name in OFFICIAL}
    for name in OFFICIAL:
        assert raw_files.size(known[name]) == int(OFFICIAL[name].url_infos[URLS[name]].size) > 168e6
        assert tfds.builder_cls(name) is OFFICIAL[name]


def test_what_takes_long_says_so(put_archive, offline, monkeypatch, capfd):
    monkeypatch.setattr(builders, "_MANY_BYTES", 10_000)
    put_archive("cifar10", packed(content_of("cifar10")))
    _ = image_classification("cifar10").train
    output, errors = capfd.readouterr()
    assert (output, errors.count("\n")) == ("", 1)
    assert "preparing cifar10 once" in errors


# Without the archive and a network.


@pytest.mark.parametrize("name", OFFICIAL)
def test_without_network_it_is_one_line_that_says_what_was_tried(name, data_dir, offline, capfd):
    start = time.perf_counter()
    with pytest.raises(UserError) as caught:
        _ = image_classification(name).train
    assert time.perf_counter() - start < 5
    for part in (str(data_dir), "www.cs.toronto.edu", "ConnectionError", "TFDS_DATA_DIR", FILES[name]):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(offline) == 1
    assert capfd.readouterr() == ("", "")


def test_the_first_prepared_set_is_taken_before_one_is_prepared(write_set, data_dir, offline):
    write_set("cifar10_jpeg", {"train": grey_examples(20), "test": grey_examples(5)})
    wanted = functools.partial(image_classification, auto=("cifar10", "cifar10_jpeg"))
    assert wanted().identity.name == "cifar10_jpeg"
    assert not offline


def test_with_none_prepared_the_digits_stand_in_and_say_so(write_set, offline):
    write_set("digits", {"train": grey_examples(20), "test": grey_examples(5)})
    data = image_classification(auto=("cifar10", "cifar10_jpeg"))
    assert data.identity.name == "digits"
    for part in ("Wanted cifar10", "INSTEAD", "not cifar10 accuracy", "ConnectionError", "--data-dir"):
        assert part in data.notice
    assert [url for url in offline if "cifar-10-binary" in url]


def test_with_none_prepared_the_first_is_made_from_its_archive(put_archive, offline):
    put_archive("cifar10", packed(content_of("cifar10")))
    data = image_classification(auto=("cifar10", "cifar10_jpeg"))
    assert (data.identity.name, data.notice) == ("cifar10", None)
