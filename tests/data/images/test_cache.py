import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from dl.data import image_classification
from dl.data.images import cache
from dl.data.images.records import RecordSource
from tests.data.tiny_sets import grey_examples

ROOT = Path(__file__).parents[3]


@pytest.fixture
def folder(write_set):
    return write_set("tiny", {"train": grey_examples(40), "test": grey_examples(5)})


def load():
    data = image_classification("tiny")
    rows = data.train[np.arange(len(data.train))]
    return data, rows


def only_file(folder):
    (path,) = folder.iterdir()
    return path


def test_a_second_start_decodes_nothing(folder, data_dir, monkeypatch):
    first, rows = load()
    monkeypatch.setattr(RecordSource, "decode_all", None)
    second, again = load()
    assert (first.from_cache, second.from_cache) == (False, True)
    for name, array in rows.items():
        np.testing.assert_array_equal(again[name], array)
    assert second.identity == first.identity
    assert list(data_dir.glob(".dl_decoded/tiny-1.0.0-*.npz"))


@pytest.mark.slow
def test_a_second_start_imports_no_tfds(folder):
    load()
    code = (
        "import sys; from dl.data import image_classification; d = image_classification('tiny');"
        "d.test; d.identity;"
        "print(d.from_cache, 'tensorflow_datasets' in sys.modules, 'PIL' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["True", "False", "False"]


def test_the_checksum_is_of_the_content_alone(folder, data_dir):
    before = load()[0].identity
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    only_file(data_dir / ".dl_decoded").unlink()
    after, _ = load()
    assert not after.from_cache
    assert after.identity == before


BREAK = {
    "empty": lambda path, content: path.write_bytes(b""),
    "half": lambda path, content: path.write_bytes(content[: len(content) // 2]),
    "garbage": lambda path, content: path.write_bytes(b"no archive" * 99),
    "folder": lambda path, content: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("broken", BREAK)
def test_a_broken_cache_is_made_anew(folder, data_dir, broken):
    first, rows = load()
    path = only_file(data_dir / ".dl_decoded")
    BREAK[broken](path, path.read_bytes())
    second, again = load()
    assert not second.from_cache
    assert second.identity == first.identity
    np.testing.assert_array_equal(again["image"], rows["image"])
    assert load()[0].from_cache


def test_no_flipped_byte_is_believed(folder, data_dir):
    first, rows = load()
    path = only_file(data_dir / ".dl_decoded")
    content = path.read_bytes()
    for at in np.random.default_rng(0).integers(0, len(content), 40):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        second, again = load()
        assert second.identity == first.identity
        np.testing.assert_array_equal(again["image"], rows["image"])


def test_an_array_changed_without_its_digest_is_not_believed(folder, data_dir):
    load()
    path = only_file(data_dir / ".dl_decoded")
    arrays = dict(np.load(path))
    arrays["train/image"][0] += 1
    np.savez(path, **arrays)  # the archive's own check sums are right again
    assert not load()[0].from_cache


def test_a_set_that_changed_is_decoded_again(folder, write_set, data_dir, tmp_path):
    first, _ = load()
    folder.rename(tmp_path / "old")
    write_set("tiny", {"train": grey_examples(40, seed=9), "test": grey_examples(5)})
    second, rows = load()
    assert not second.from_cache
    assert second.identity.checksum != first.identity.checksum
    third, again = load()
    assert third.from_cache
    np.testing.assert_array_equal(again["image"], rows["image"])
    assert len(list((data_dir / ".dl_decoded").iterdir())) == 1  # the stale one was replaced


def test_a_shard_that_changed_its_time_is_read_again(folder):
    load()
    os.utime(next(folder.glob("tiny-train*")))
    assert not load()[0].from_cache


def test_writers_at_once_leave_one_whole_cache(folder, data_dir):
    loaded = []
    threads = [threading.Thread(target=lambda: loaded.append(load()[0].identity)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loaded) == 4
    assert len(set(map(repr, loaded))) == 1
    assert only_file(data_dir / ".dl_decoded").suffix == ".npz"
    assert load()[0].from_cache


def test_a_write_that_fails_leaves_nothing_and_is_no_error(folder, data_dir, monkeypatch):
    def fail(file, **arrays):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", fail)
    data, _ = load()
    assert not data.from_cache
    assert not list((data_dir / ".dl_decoded").iterdir())


def test_what_a_killed_writer_left_is_removed_in_time(folder, data_dir):
    left = data_dir / ".dl_decoded" / "tiny-1.0.0-00000000.npz.0.tmp"
    left.parent.mkdir()
    left.touch()
    os.utime(left, (time.time() - 9999,) * 2)
    load()
    assert not left.exists()


def test_a_folder_marked_read_only_is_left_alone(folder, data_dir, tmp_path):
    before, held = stat.S_IMODE(data_dir.stat().st_mode), sorted(data_dir.rglob("*"))
    data_dir.chmod(0o555)
    try:
        load()
        assert load()[0].from_cache
    finally:
        data_dir.chmod(before)
    assert sorted(data_dir.rglob("*")) == held
    assert only_file(tmp_path / "cache/dl/decoded").suffix == ".npz"


def test_without_any_place_there_is_no_cache(folder, data_dir, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("dl.data.tfds.folders.is_writable", lambda folder: False)
    first, rows = load()
    second, again = load()
    assert (first.from_cache, second.from_cache) == (False, False)
    np.testing.assert_array_equal(again["image"], rows["image"])


def test_each_image_size_has_its_own_cache_only_where_it_matters(folder, data_dir):
    load()
    assert image_classification("tiny", image_size=7).from_cache  # stored sizes do not vary


def test_the_checksum_knows_names_dtypes_and_shapes():
    array = np.arange(6, dtype=np.uint8)
    sums = {
        cache.checksum({"a": array}),
        cache.checksum({"b": array}),
        cache.checksum({"a": array.view(np.int8)}),
        cache.checksum({"a": array.reshape(2, 3)}),
        cache.checksum({"a": array + 1}),
    }
    assert len(sums) == 5
    assert cache.checksum({"a": array.astype(">i4")}) == cache.checksum({"a": array.astype("<i4")})


# A data folder that several people share.


def given_to_another(path, monkeypatch):
    """Makes a file somebody else's."""
    if os.geteuid() == 0:
        os.chown(path, 4711, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 4711)


SPOIL = {
    "another user's": given_to_another,
    "writable by the group": lambda path, _: path.chmod(0o664),
    "writable by all": lambda path, _: path.chmod(0o646),
}


@pytest.mark.parametrize("how", SPOIL)
def test_a_cache_that_others_can_have_written_is_not_believed(folder, data_dir, monkeypatch, how):
    rows = load()[1]
    path = only_file(data_dir / ".dl_decoded")
    with np.load(path) as stored:
        forged = {name: stored[name] for name in stored.files}
    assert load()[0].from_cache
    key = cache.cache_key(image_classification("tiny")._found.stored)
    del forged["meta"]
    forged["train/image"] = 255 - forged["train/image"]
    cache.store(image_classification("tiny")._found.stored, data_dir, key, forged)  # key and digest are right
    SPOIL[how](path, monkeypatch)
    again, decoded = load()
    assert not again.from_cache
    np.testing.assert_array_equal(decoded["image"], rows["image"])


def test_nobody_else_can_write_what_is_cached_or_look_into_the_users_cache(folder, data_dir, tmp_path):
    before = os.umask(0)
    try:
        load()
        mode = stat.S_IMODE(data_dir.stat().st_mode)
        data_dir.chmod(0o555)
        load()
    finally:
        os.umask(before)
        data_dir.chmod(mode)
    for path in (only_file(data_dir / ".dl_decoded"), only_file(tmp_path / "cache/dl/decoded")):
        assert not path.stat().st_mode & 0o022
    assert stat.S_IMODE((tmp_path / "cache/dl").stat().st_mode) == 0o700


def test_a_pipe_in_place_of_a_cache_is_not_waited_for(folder, data_dir):
    load()
    path = only_file(data_dir / ".dl_decoded")
    path.unlink()
    os.mkfifo(path)
    assert not load()[0].from_cache
