"""Locks on folders, exclusive and shared."""

import os

import pytest

from dl.errors import UserError
from dl.system.locks import FolderLock


def test_a_shared_lock_excludes_only_exclusive_ones_and_its_last_holder_removes_the_file(tmp_path):
    one, two = FolderLock(tmp_path, is_shared=True), FolderLock(tmp_path, is_shared=True)
    for _ in range(2):
        with pytest.raises(UserError, match="in use by another process"):
            FolderLock(tmp_path)
        one.release()
        one = two
    assert not os.listdir(tmp_path)
    alone = FolderLock(tmp_path)
    with pytest.raises(UserError, match="in use by another process"):
        FolderLock(tmp_path, is_shared=True)
    alone.release()
    assert not os.listdir(tmp_path)
