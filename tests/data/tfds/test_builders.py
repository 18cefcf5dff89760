import gzip
import hashlib
import http.server
import logging
import shutil
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urljoin

import numpy as np
import pytest
import requests
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits
from tensorflow_datasets.core.download import checksums, downloader
from tensorflow_datasets.image_classification import mnist

from dl.data import image_classification
from dl.data.tfds import builders
from dl.data.tfds.download import PREFLIGHT_SECONDS
from dl.data.tfds.find import PREPARABLE
from dl.errors import UserError
from tests.data.tiny_sets import noise

ROOT = Path(__file__).parents[3]
IMAGES = {"train": noise(0, 30, 28, 28), "test": noise(1, 10, 28, 28)}
LABELS = {split: np.arange(len(images), dtype=np.uint8) % 10 for split, images in IMAGES.items()}


def idx(array):
    shape = struct.pack(f">{array.ndim}I", *array.shape)
    return struct.pack(">I", 0x800 + array.ndim) + shape + array.tobytes()


@pytest.fixture
def raw_files(monkeypatch):
    """Small raw files by name, whose checksums TFDS takes for MNIST's."""
    files = {}
    for split, (images, labels) in builders.RAW_FILES.items():
        files[images] = gzip.compress(idx(IMAGES[split]))
        files[labels] = gzip.compress(idx(LABELS[split]))
    infos = dict(checksums.get_all_url_infos())
    for name, content in files.items():
        digest = hashlib.sha256(content).hexdigest()
        size = tfds.core.utils.Size(len(content))
        infos[urljoin(mnist.MNIST.URL, name)] = checksums.UrlInfo(size, digest, name)
    monkeypatch.setattr(checksums, "get_all_url_infos", lambda: infos)
    monkeypatch.setattr(builders.Mnist, "url_infos", infos)
    return files


@pytest.fixture
def offline(monkeypatch):
    """Counts attempts to reach the network; each fails at once."""
    attempts = []

    def refuse(self, request, **arguments):
        attempts.append(request.url)
        raise requests.ConnectionError("no network")

    monkeypatch.setattr(requests.Session, "send", refuse)
    return attempts


def put(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def all_rows(source):
    return source[np.arange(len(source))]


# Raw files.


@pytest.mark.parametrize("place", ["manual", "manual/mnist", "downloads/manual"])
@pytest.mark.parametrize("dataset", ["mnist", "auto"])
def test_raw_files_are_enough(data_dir, raw_files, offline, place, dataset, capfd):
    put(data_dir / place, raw_files)
    data = image_classification(dataset)
    rows = all_rows(data.test)
    pixels = {image.tobytes(): label for image, label in zip(IMAGES["test"], LABELS["test"], strict=True)}
    assert {i.tobytes(): label for i, label in zip(rows["image"], rows["label"], strict=True)} == pixels
    assert data.identity.sizes == {"train": 27, "validation": 3, "test": 10}
    assert (data.identity.name, data.identity.version, data.notice) == ("mnist", "3.0.1", None)
    assert not offline
    assert capfd.readouterr() == ("", "")
    assert not list(data_dir.glob(".dl_preparing*"))


def test_the_result_is_what_tfds_reads_by_name(data_dir, raw_files, offline):
    put(data_dir / "manual", raw_files)
    rows = all_rows(image_classification("mnist").test)
    official = tfds.data_source("mnist", data_dir=data_dir, split="test", download=False)
    assert len(official) == 10
    for at, example in enumerate(official):
        np.testing.assert_array_equal(example["image"], rows["image"][at])
        assert example["label"] == rows["label"][at]


@pytest.mark.parametrize("dataset", ["mnist", "auto"])
def test_a_wrong_raw_file_is_an_error(data_dir, raw_files, offline, dataset):
    name = "train-labels-idx1-ubyte.gz"
    put(data_dir / "manual", {**raw_files, name: b"not it"})
    got, expected = (hashlib.sha256(c).hexdigest() for c in (b"not it", raw_files[name]))
    with pytest.raises(UserError, match=f"manual/{name} is not .*{got}, expected .*{expected}"):
        _ = image_classification(dataset).train


def test_a_wrong_file_among_tfds_downloads_is_an_error(data_dir, raw_files, offline):
    put(data_dir / "manual", {n: c for n, c in raw_files.items() if "t10k" in n})
    urls = [urljoin(mnist.MNIST.URL, name) for name in raw_files if "train" in name]
    for url in urls:
        digest = checksums.get_all_url_infos()[url].checksum
        path = data_dir / "downloads/mnist" / tfds.core.download.resource.get_dl_fname(url, digest)
        put(path.parent, {path.name: b"not it", f"{path.name}.INFO": b"{}"})
    with pytest.raises(UserError, match=r"downloads/mnist/.* is not the file of .*train"):
        _ = image_classification("mnist").train
    assert not offline
    assert not (data_dir / "mnist").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no gzip", "gzip"),
        (gzip.compress(idx(IMAGES["test"]), mtime=0)[:-9], "Compressed file ended|end-of-stream"),
        (gzip.compress(idx(LABELS["test"]), mtime=0), "magic number is 2049, not 2051"),
        (gzip.compress(idx(IMAGES["test"])[:-1], mtime=0), "reshape"),
        (gzip.compress(b"", mtime=0), "requires a buffer"),
    ],
    ids=["not gzip", "cut", "labels", "short", "empty"],
)
def test_a_file_that_is_no_idx(tmp_path, content, reason):
    (tmp_path / "f.gz").write_bytes(content)
    with pytest.raises(UserError, match=f"f.gz is not an IDX file of rank 3 .*({reason})"):
        builders._read_idx(tmp_path / "f.gz", 3)


# With one: a server on this machine.


@pytest.fixture
def server(raw_files, monkeypatch):
    """Serves the raw files at a URL that TFDS takes for MNIST's; `files` may be changed."""
    files = dict(raw_files)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            content = files.get(self.path.removeprefix("/"))
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{served.server_port}/"
        infos = checksums.get_all_url_infos()
        for name in files:
            infos[url + name] = infos[urljoin(mnist.MNIST.URL, name)]
        monkeypatch.setattr(builders.Mnist, "URL", url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield files
        served.shutdown()


def test_what_is_missing_is_downloaded_and_kept(data_dir, server, raw_files, monkeypatch, capfd):
    put(data_dir / "manual", {n: c for n, c in raw_files.items() if "t10k" in n})
    assert image_classification("mnist").identity.sizes == {
        "train": 27,
        "validation": 3,
        "test": 10,
    }
    assert capfd.readouterr() == ("", "")
    shutil.rmtree(data_dir / "mnist")
    server.clear()  # the downloads of the first time are enough
    assert image_classification("mnist").identity.sizes["train"] == 27


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["mnist", "auto"])
def test_a_download_with_another_content_is_an_error(data_dir, server, dataset):
    server["t10k-labels-idx1-ubyte.gz"] += b"more"
    with pytest.raises(UserError, match=r"t10k-labels-idx1-ubyte.*wrong checksum") as caught:
        _ = image_classification(dataset).train
    assert "\n" not in str(caught.value)


def test_a_server_without_the_file_counts_as_no_network(data_dir, server):
    del server["t10k-labels-idx1-ubyte.gz"]  # is asked for after the first three were there
    assert "(DownloadError)" in image_classification("auto").notice
    server.clear()
    assert "(HTTP status 404)" in image_classification("auto").notice


# Without a network.


def test_mnist_without_network_is_one_line_that_says_what_was_tried(data_dir, offline, capfd):
    with pytest.raises(UserError) as caught:
        _ = image_classification("mnist").train
    message = str(caught.value)
    for part in (
        str(data_dir),
        "storage.googleapis.com",
        "ConnectionError",
        "TFDS_DATA_DIR",
        "t10k",
    ):
        assert part in message
    assert "\n" not in message
    assert len(offline) == 1  # one attempt, no retries
    assert capfd.readouterr() == ("", "")


def test_auto_without_network_is_digits_with_a_notice(data_dir, offline):
    data = image_classification()
    assert data.identity.name == "digits"
    assert data.image_shape == (8, 8, 1)
    for part in (
        "mnist",
        "INSTEAD",
        "1,797",
        "not mnist accuracy",
        "ConnectionError",
        "--data-dir",
    ):
        assert part in data.notice


def test_a_network_that_never_answers_is_given_up(data_dir, monkeypatch):
    forever = threading.Event()
    monkeypatch.setattr(requests.Session, "send", lambda *a, **k: forever.wait(60))
    monkeypatch.setattr("dl.data.tfds.download.PREFLIGHT_SECONDS", 0.2)
    start = time.perf_counter()
    with pytest.raises(UserError, match=r"no answer within 0\.2 s"):
        _ = image_classification("mnist").train
    assert time.perf_counter() - start < 3
    forever.set()


def test_a_portal_that_answers_for_the_server_counts_as_no_network(data_dir, monkeypatch):
    class Portal:
        status_code = 200
        raw = type("", (), {"read": staticmethod(lambda size: b"<h"[:size])})

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(requests, "get", lambda *a, **k: Portal())
    with pytest.raises(UserError, match="the answer is not the file"):
        _ = image_classification("fashion_mnist").train


def test_the_whole_attempt_has_ten_seconds():
    assert PREFLIGHT_SECONDS <= 5  # leaves time for imports, and for digits to be prepared instead


def test_tfds_and_its_loggers_are_left_as_they_were():
    before = downloader.MAX_RETRIES, logging.getLogger("urllib3").level
    with builders._quiet():
        assert downloader.MAX_RETRIES == 1
    assert (downloader.MAX_RETRIES, logging.getLogger("urllib3").level) == before


# Digits.


@pytest.fixture(scope="module")
def digits_folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("digits")
    builders.prepare("digits", root)
    return root


def test_digits_are_those_of_scikit_learn(digits_folder, data_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(digits_folder))
    data = image_classification("digits")
    assert data.identity.sizes == {"train": 1293, "validation": 144, "test": 360}
    rows = [all_rows(source) for source in (data.train, data.validation, data.test)]
    read = [
        (image.tobytes(), int(label))
        for part in rows
        for image, label in zip(part["image"], part["label"], strict=True)
    ]
    digits = load_digits()
    grey = [[round(v * 255 / 16) for v in image.ravel()] for image in digits.images]
    assert sorted(read) == sorted((bytes(g), int(t)) for g, t in zip(grey, digits.target, strict=True))
    share = np.bincount(rows[2]["label"]) / np.bincount(digits.target)
    np.testing.assert_allclose(share, 360 / 1797, atol=0.01)


def test_digits_are_read_by_tfds(digits_folder):
    builder = tfds.builder_from_directory(digits_folder / "digits/1.0.0")
    assert builder.as_data_source("test")[0]["image"].shape == (8, 8, 1)


def test_the_name_stays_with_tfds():
    assert tfds.builder_cls("mnist") is mnist.MNIST


def test_the_catalogue_knows_what_can_be_prepared():
    assert {n: str(b.VERSION) for n, b in builders.BUILDERS.items()} == PREPARABLE


# Folders.


def test_a_half_prepared_folder_is_no_set_and_no_obstacle(data_dir, raw_files, offline):
    put(data_dir / "manual", raw_files)
    put(data_dir / "mnist/3.0.1", {"features.json": b"{}"})
    assert image_classification("mnist").identity.sizes["test"] == 10
    assert (data_dir / "mnist/3.0.1/dataset_info.json").is_file()


def test_whoever_loses_the_rename_uses_the_winners(tmp_path):
    put(tmp_path / "winner", {"dataset_info.json": b"winner"})
    put(tmp_path / "loser", {"dataset_info.json": b"loser"})
    for name in ("winner", "loser"):
        final = builders._publish(tmp_path / name, tmp_path / "set/1.0.0")
    assert (final / "dataset_info.json").read_bytes() == b"winner"


@pytest.mark.slow
def test_two_processes_at_once_both_end_well(data_dir):
    code = (
        "from dl.data import image_classification; d = image_classification('digits');"
        "print(d.identity.checksum)"
    )
    command = [sys.executable, "-W", "error::UserWarning", "-c", code]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=-1, stderr=subprocess.STDOUT) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert outputs[0] == outputs[1]
    assert len(outputs[0].split()) == 1
    assert [path.name for path in (data_dir / "digits").iterdir()] == ["1.0.0"]


def test_a_folder_that_cannot_be_written_has_a_stand_in(data_dir, raw_files, offline, tmp_path):
    put(data_dir / "manual", raw_files)
    held = sorted(data_dir.rglob("*"))
    data_dir.chmod(0o555)
    try:
        first, second = image_classification("mnist"), image_classification("mnist")
        assert first.identity.sizes["test"] == 10
        assert (tmp_path / "cache/dl/tensorflow_datasets/mnist/3.0.1").is_dir()
        assert second.identity == first.identity
        assert second.from_cache
    finally:
        data_dir.chmod(0o755)
    assert sorted(data_dir.rglob("*")) == held


def test_without_a_named_folder_sets_lie_in_the_home_folder(offline, tmp_path, monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=f"not prepared in {tmp_path}/tensorflow_datasets"):
        _ = image_classification("mnist").train
    assert image_classification("digits").identity.sizes["test"] == 360
    assert [p.name for p in (tmp_path / "tensorflow_datasets/digits").iterdir()] == ["1.0.0"]


def test_at_worst_a_temporary_folder_is_used(data_dir, raw_files, offline, tmp_path, monkeypatch):
    put(data_dir / "manual", raw_files)
    (tmp_path / "cache").touch()  # a file where the folder should be
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    data_dir.chmod(0o555)
    try:
        assert image_classification("mnist").identity.sizes["test"] == 10
    finally:
        data_dir.chmod(0o755)
    assert list((tmp_path / "tmp").glob("dl-datasets-*/mnist/3.0.1"))
