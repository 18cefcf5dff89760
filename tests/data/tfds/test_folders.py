"""The data folder: an argument, else that of the context around the call, else of the environment."""

import os
import threading

import pytest

from dl.data import image_classification
from dl.data.tfds.folders import using_data_dir
from dl.errors import UserError


@pytest.fixture
def prepared(data_dir, tmp_path, monkeypatch):
    """A folder with digits; the one that the environment names does not exist."""
    folder = tmp_path / "prepared"
    folder.mkdir()
    assert image_classification("digits", data_dir=folder).num_classes == 10
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "missing"))
    return folder


def sizes_in_a_thread(data):
    found = []

    def read():
        try:
            found.append(data.identity.sizes["test"])
        except UserError as error:
            found.append(str(error))

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    return found[0]


def test_a_set_keeps_the_folder_that_it_was_asked_for_with(prepared):
    before = dict(os.environ)
    argument = image_classification("digits", data_dir=str(prepared))
    with using_data_dir(prepared):
        inside = image_classification("digits")
        with using_data_dir(None):
            deeper = image_classification("digits")
    after = image_classification("digits")
    # They are read outside of the context, and in a thread that never was in it.
    sizes = [sizes_in_a_thread(data) for data in (argument, inside, deeper)]
    assert sizes == [argument.identity.sizes["test"]] * 3
    assert "missing does not exist" in sizes_in_a_thread(after)
    assert dict(os.environ) == before


def test_the_argument_goes_before_the_context(prepared, tmp_path):
    with using_data_dir(tmp_path / "nowhere"):
        assert image_classification("digits", data_dir=prepared).num_classes == 10
        with pytest.raises(UserError, match="nowhere does not exist: --data-dir"):
            _ = image_classification("digits").num_classes


def test_where_a_set_lies_is_not_a_part_of_what_was_asked_for(prepared):
    request = image_classification("digits").request
    assert image_classification("digits", data_dir=prepared).request == request
