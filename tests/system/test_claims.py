"""Claims: of several processes one gets a piece, a dead holder loses it, and no two clocks are compared."""

import errno
import itertools
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from dl.errors import UserError
from dl.system.claims import ClaimLost, Claims

PIECES = [f"piece-{k:02d}" for k in range(30)]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "claims"


def await_claim(claims, name, seconds=10.0):
    """Returns the claim on a piece as soon as it can be claimed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (claim := claims.claim(name)) is not None:
            return claim
        time.sleep(0.01)
    raise AssertionError(f"{name} could not be claimed in {seconds} s")


@pytest.fixture
def silent(folder):
    """A claim whose holder shows no sign of life in the time of a test."""
    return Claims(folder, expiry=1000.0).claim("piece")


@pytest.fixture
def impatient(folder):
    return Claims(folder, expiry=0.05)


def test_of_many_threads_one_gets_each_piece(folder):
    start = threading.Barrier(8)

    def work(_):
        claims = Claims(folder, expiry=1000.0)
        start.wait()
        return [name for name in PIECES if claims.claim(name) is not None]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, range(8)))
    assert sorted(itertools.chain(*found)) == PIECES
    assert not [path for path in os.listdir(folder) if path.startswith(".")]


def test_of_many_threads_one_takes_over_from_a_dead_holder(folder, silent):
    start = threading.Barrier(8)

    def work(_):
        claims = Claims(folder, expiry=0.05)
        assert claims.claim("piece") is None
        time.sleep(0.1)
        start.wait()
        return claims.claim("piece")

    with ThreadPoolExecutor(8) as pool:
        [claim] = filter(None, pool.map(work, range(8)))
    assert claim.is_inherited
    with pytest.raises(ClaimLost):
        silent.check()


@pytest.mark.slow
def test_of_many_processes_one_finishes_each_piece_also_when_some_are_killed(folder):
    program = f"""
import time
from pathlib import Path
from dl.system.claims import ClaimLost, Claims
claims, names = Claims(Path({str(folder)!r}), 1.0), {PIECES!r}
print("ready", flush=True)
while not all(claims.is_done(name) for name in names):
    for name in names:
        if (claim := claims.claim(name)) is not None:
            with claim:
                time.sleep(0.05)
                try:
                    claim.finish(name)
                except ClaimLost:
                    continue
                print(name, flush=True)
    time.sleep(0.01)
"""
    command = [sys.executable, "-c", program]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes[:2]:
        time.sleep(0.2)
        process.kill()
    said = [name for process in processes for name in process.communicate(timeout=60)[0].split()]
    assert [process.returncode for process in processes] == [-9, -9, 0, 0]
    assert len(said) == len(set(said))
    # A killed process may have finished a piece without saying so.
    assert set(PIECES) - set(said) <= {name for name in PIECES if Claims(folder).result(name) == name}


@pytest.mark.slow
def test_a_living_holder_keeps_its_piece(folder):
    with Claims(folder, expiry=2.0).claim("piece") as claim:
        other, end = Claims(folder, expiry=2.0), time.monotonic() + 5.0
        while time.monotonic() < end:
            assert other.claim("piece") is None
            time.sleep(0.05)
        assert not claim.is_lost
    assert other.claim("piece") is not None  # given back at the end of the context


def test_a_dead_holder_loses_its_piece_and_what_it_does_later_does_not_count(folder, silent, impatient):
    assert impatient.claim("piece") is None
    assert impatient.holders() == {"piece": f"process {os.getpid()} on {impatient._holder.split('.')[0]}"}
    claim = await_claim(impatient, "piece")
    assert (silent.is_inherited, claim.is_inherited) == (False, True)
    with pytest.raises(ClaimLost):
        silent.finish("late")
    silent.release()
    claim.finish("in time")
    assert impatient.is_done("piece")
    assert impatient.result("piece") == "in time"
    assert impatient.claim("piece") is None
    assert not impatient.holders()


def test_a_piece_of_the_dead_is_left_alone_where_others_come_first(silent, impatient):
    for _ in range(3):
        assert impatient.claim("piece", is_dead_too=False) is None
        time.sleep(0.1)
    assert impatient.claim("piece") is not None  # the time of the looks before counts


@pytest.mark.parametrize("when", [0, 2**32])
def test_the_times_of_files_and_other_clocks_do_not_matter(folder, silent, impatient, monkeypatch, when):
    for path in (folder, folder / "piece", *(folder / "piece").iterdir()):
        os.utime(path, (when, when))
    monkeypatch.setattr("time.time", lambda: 0.0)
    assert impatient.claim("piece") is None
    assert impatient.claim("piece") is None
    assert await_claim(impatient, "piece").is_inherited


def test_a_rename_whose_answer_is_lost_counts(folder, monkeypatch):
    rename = os.rename

    def rename_twice(old, new):
        rename(old, new)
        if os.path.isfile(new):
            rename(old, new)  # as a client repeats it: FileNotFoundError

    monkeypatch.setattr("os.rename", rename_twice)
    claims = Claims(folder)
    claim = claims.claim("piece")
    claim.check()
    claim.finish(1)
    assert claims.result("piece") == 1


def test_an_outdated_listing_takes_nothing_from_a_living_holder(folder, silent, monkeypatch):
    names = os.listdir(folder / "piece")
    silent.check()  # a sign of life
    monkeypatch.setattr("dl.system.claims.os.listdir", lambda path: names)
    observer = Claims(folder, expiry=0.0)
    assert [observer.claim("piece") for _ in range(3)] == [None] * 3
    monkeypatch.undo()
    silent.check()
    assert not silent.is_lost


def test_a_listing_in_the_moment_of_a_rename_is_read_again(folder, silent, monkeypatch):
    listdir = os.listdir
    [name] = listdir(folder / "piece")
    listings = [[], ["0-free", name], ["1-done", name], [name, "1-done"]]
    monkeypatch.setattr(
        "dl.system.claims.os.listdir", lambda path: listings.pop(0) if listings else listdir(path)
    )
    claims = Claims(folder)
    assert claims.claim("piece") is None
    assert claims.is_done("piece")
    assert claims.is_done("piece")
    monkeypatch.undo()
    assert not claims.is_done("piece")
    silent.check()


def test_neither_locks_nor_links_are_needed(folder, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOTSUP, "not supported")

    for name in ("fcntl.flock", "fcntl.lockf", "os.link", "os.symlink"):
        monkeypatch.setattr(name, unsupported)
    claims = Claims(folder)
    claims.claim("piece").finish({"a": [1, None]})
    assert claims.result("piece") == {"a": [1, None]}


def test_an_error_of_the_disk_that_passes_costs_no_piece(folder, monkeypatch):
    claim = Claims(folder, expiry=0.3).claim("piece")
    rename, failures = os.rename, [OSError(errno.EIO, "broken"), OSError(errno.ESTALE, "stale")]

    def fail_twice(old, new):
        if failures:
            raise failures.pop()
        rename(old, new)

    monkeypatch.setattr("os.rename", fail_twice)
    end = time.monotonic() + 10.0
    while failures and time.monotonic() < end:
        time.sleep(0.02)
    assert not failures
    claim.finish(1)


def test_notes_are_for_the_holders_after(folder, silent, impatient):
    assert impatient.note("piece", "point") is None
    silent.note("point", [1])
    with await_claim(impatient, "piece") as claim:
        assert impatient.note("piece", "point") == [1]
        claim.note("point", [2])
        silent.note("point", [3])  # too late
        assert impatient.note("piece", "point") == [2]


def test_what_a_killed_process_has_prepared_is_removed(folder):
    (folder / ".piece.0123").mkdir(parents=True)
    (folder / ".piece.0123" / "0-free").touch()
    assert Claims(folder).claim("piece") is not None
    assert os.listdir(folder) == ["piece"]


def test_a_damaged_piece_is_one_line(folder):
    (folder / "piece").mkdir(parents=True)
    (folder / "piece" / "notes.txt").touch()
    with pytest.raises(UserError, match="piece is damaged"):
        Claims(folder).claim("piece")
