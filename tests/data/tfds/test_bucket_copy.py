"""Data sets in a bucket, against a stand-in for Google Cloud Storage on this machine."""

import json

import pytest
import requests

from dl.data import image_classification
from dl.data.tfds import builders, folders
from dl.errors import StorageError, UserError
from dl.system.bucket import BucketFolder

URL = "gs://stand-in/data"


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The data folder of prepared digits."""
    root = tmp_path_factory.mktemp("digits")
    builders.prepare("digits", root)
    return root


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dl"


def upload(root, url=URL):
    bucket = BucketFolder(url)
    for path in root.rglob("*"):
        if path.is_file():
            bucket.upload(path, str(path.relative_to(root)))


def test_bucket_has_same_examples_as_disk(bucket_server, digits, cache, capsys):
    upload(digits)
    local = image_classification("digits", data_dir=digits)
    remote = image_classification("digits", data_dir=URL)
    assert (remote.train.arrays["image"] == local.train.arrays["image"]).all()
    assert (remote.test.arrays["label"] == local.test.arrays["label"]).all()
    out, err = capsys.readouterr()
    assert (out, err.count("copying gs://stand-in/data/digits/1.0.0")) == ("", 1)


def test_copy_is_used_again_until_the_set_changes(bucket_server, digits, cache, capsys):
    upload(digits)
    assert image_classification("digits", data_dir=URL).num_classes == 10
    [info] = cache.rglob("dataset_info.json")
    capsys.readouterr()
    assert image_classification("digits", data_dir=URL).num_classes == 10
    assert "copying" not in capsys.readouterr().err

    content = json.loads(info.read_text()) | {"description": "prepared again"}
    BucketFolder(f"{URL}/digits/1.0.0").replace(
        "dataset_info.json", json.dumps(content), BucketFolder(URL).list()["digits/1.0.0/dataset_info.json"]
    )
    assert image_classification("digits", data_dir=URL).num_classes == 10
    assert json.loads(info.read_text())["description"] == "prepared again"
    assert [path.name for path in info.parent.parent.iterdir()] == ["1.0.0"]


def test_incomplete_copy_is_not_used(bucket_server, digits, cache, monkeypatch):
    upload(digits)
    download = BucketFolder.download
    left = [1]

    def download_one(self, name, folder):
        if not left:
            raise OSError(28, "No space left on device")
        left.pop()
        download(self, name, folder)

    with monkeypatch.context() as patch:
        patch.setattr(BucketFolder, "download", download_one)
        with pytest.raises(UserError, match="No space left on device.*XDG_CACHE_HOME"):
            assert image_classification("digits", data_dir=URL).num_classes == 10
    assert not [path for path in cache.rglob("*") if path.is_file()]
    assert len(image_classification("digits", data_dir=URL).train.arrays["label"]) > 1000


@pytest.mark.parametrize("name", ["../../stolen", "/stolen", "a/../../../stolen"])
def test_object_outside_of_its_folder_is_refused(bucket_server, tmp_path, name):
    with pytest.raises(UserError, match=f"{URL}/{name} has a name that leaves its folder; remove"):
        BucketFolder(URL).download(name, tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []


def test_bucket_that_stops_to_answer_is_one_line(bucket_server, digits, cache, monkeypatch):
    upload(digits)

    def locate(request, root):
        raise requests.ConnectionError("connection reset")

    monkeypatch.setattr(folders, "locate", locate)
    with pytest.raises(
        StorageError, match="gs://stand-in/data cannot be reached .connection reset."
    ) as caught:
        assert image_classification("digits", data_dir=URL).num_classes == 10
    assert "\n" not in str(caught.value)


def test_preparable_set_that_the_bucket_lacks_is_prepared_in_the_cache(bucket_server, digits, cache):
    upload(digits / "digits", f"{URL}/other")
    assert len(image_classification("digits", data_dir=URL).train.arrays["label"]) > 1000
    assert (cache / "tensorflow_datasets/digits/1.0.0/dataset_info.json").is_file()


@pytest.mark.parametrize(
    ("url", "name", "message"),
    [
        (URL, "digitz", "digitz is not prepared in gs://stand-in/data: did you mean digits"),
        ("gs://stand-in/nothing", "digits", "gs://stand-in/nothing is empty or does not exist"),
        ("gs://elsewhere/data", "digits", "gs://elsewhere/data is empty or does not exist"),
        ("gs://stand-in", "digits", "is a whole bucket"),
    ],
)
def test_error_is_one_line(bucket_server, digits, cache, url, name, message):
    upload(digits)
    with pytest.raises(UserError, match=message) as caught:
        assert image_classification(name, data_dir=url).num_classes == 10
    assert "\n" not in str(caught.value)


def test_command_takes_a_bucket(bucket_server, digits, cache, tmp_path, monkeypatch):
    from dl.cli.main import main
    from experiments import mnist_mlp

    upload(digits)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    words = ["--dataset", "digits", "--hidden", "8", "--num-epochs", "1", "--workdir", str(tmp_path / "run")]
    main(mnist_mlp.experiment, [*words, "--data-dir", URL])
    assert list(cache.rglob("dataset_info.json"))
