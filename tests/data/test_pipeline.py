import threading

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dl.data import ArraySplits, steps_per_epoch
from dl.data.folds import Folds
from dl.data.pipeline import Batches
from dl.data.source import ArraySource
from dl.errors import UserError
from dl.sharding import make_mesh


def source_of(size):
    return ArraySource({"x": np.arange(size, dtype=np.float32) * 10})


def rows_of(batches, steps):
    """Returns the examples that count in the given steps."""
    pairs = [batches.rows(step) for step in steps]
    return np.concatenate([index[mask] for index, mask in pairs])


@settings(max_examples=50, deadline=None)
@given(
    size=st.integers(1, 300),
    shards=st.sampled_from([1, 2, 4, 8]),
    factor=st.integers(1, 9),
    seed=st.none() | st.integers(0, 2**32 - 1),
)
def test_each_pass_takes_every_example_exactly_once(size, shards, factor, seed):
    batches = Batches(source_of(size), shards * factor, make_mesh({"data": shards}), seed=seed)
    n = batches.steps_per_epoch
    assert n == steps_per_epoch(size, shards * factor)
    for epoch in (0, 3):
        rows = rows_of(batches, range(epoch * n, (epoch + 1) * n))
        np.testing.assert_array_equal(np.sort(rows), np.arange(size))


def test_the_order_is_a_function_of_seed_and_step_alone(mesh1, mesh8):
    first = Batches(source_of(100), 16, mesh1, seed=3)
    second = Batches(source_of(100), 16, mesh8, seed=3)
    for step in (40, 0, 6, 7):  # asked for in any order, on any mesh
        np.testing.assert_array_equal(first.rows(step)[0], second.rows(step)[0])
        np.testing.assert_array_equal(first[step]["x"], second[step]["x"])
    other = Batches(source_of(100), 16, mesh1, seed=4)
    assert (other.rows(0)[0] != first.rows(0)[0]).any()
    assert (first.rows(0)[0] != first.rows(7)[0]).any()  # the next epoch is another order


def test_the_order_is_the_documented_one():
    """Ranks of Philox words, which NumPy guarantees; a change would break every resumed run."""
    batches = Batches(source_of(6), 6, make_mesh({"data": 1}), seed=5)
    words = np.random.Philox(key=[5, 2]).random_raw(6)
    np.testing.assert_array_equal(batches.rows(2)[0], np.argsort(words))


def test_batches_hold_the_features_of_their_indices_and_mask_padding(mesh8):
    batches = Batches(source_of(20), 16, mesh8, seed=0)
    batch = jax.device_get(batches[1])
    np.testing.assert_array_equal(batch["x"], batch["index"] * 10)
    assert batch["mask"].sum() == 4
    assert batches[1]["x"].sharding.spec == jax.P(("data", "fsdp"))


def test_without_a_seed_the_order_is_the_sources(mesh1):
    batches = Batches(source_of(10), 4, mesh1)
    np.testing.assert_array_equal(rows_of(batches, range(3)), np.arange(10))


class StreamedSource:
    """A source that is not an array in memory, and notes who reads it."""

    def __init__(self, size):
        self.inner = source_of(size)
        self.spec = self.inner.spec
        self.threads = set()

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, indices):
        self.threads.add(threading.current_thread().name)
        return self.inner[indices]


def test_a_stream_gives_the_same_batches_as_resident_arrays_and_reads_ahead(mesh8):
    streamed = StreamedSource(50)
    stream = Batches(streamed, 8, mesh8, seed=1)
    resident = Batches(source_of(50), 8, mesh8, seed=1)
    for got, expected in zip(stream.iterate(3, 12), resident.iterate(3, 12), strict=True):
        for name in expected:
            np.testing.assert_array_equal(got[name], expected[name])
    assert all("prefetch" in name for name in streamed.threads)


def test_large_arrays_stream_too(mesh1):
    batches = Batches(source_of(50), 8, mesh1, seed=1, max_resident_bytes=10)
    resident = Batches(source_of(50), 8, mesh1, seed=1)
    np.testing.assert_array_equal(batches[2]["x"], resident[2]["x"])


def test_an_iteration_that_is_left_early_ends_its_threads(mesh1):
    before = threading.active_count()
    iterator = Batches(StreamedSource(50), 8, mesh1, seed=1).iterate(0, 1000)
    next(iterator)
    iterator.close()
    assert threading.active_count() == before


def test_few_large_batches_are_read_ahead(mesh1, monkeypatch):
    started = []
    read = Batches.__getitem__

    def note(self, step):
        started.append(step)
        return read(self, step)

    monkeypatch.setattr(Batches, "__getitem__", note)
    for max_bytes, num_ahead in ((2**20, 4), (1, 1)):
        monkeypatch.setattr("dl.data.pipeline.MAX_PREFETCH_BYTES", max_bytes)
        started.clear()
        iterator = Batches(StreamedSource(50), 8, mesh1, seed=1).iterate(0, 1000)
        next(iterator)
        iterator.close()  # waits for those that have started
        assert len(started) <= num_ahead + 1


def test_a_batch_that_does_not_divide_is_one_line(mesh8):
    with pytest.raises(UserError, match="batch_size=12 does not divide over the 8 devices") as caught:
        Batches(source_of(50), 12, mesh8)
    assert "such as 16" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_split_is_one_line(mesh1):
    with pytest.raises(UserError, match="without examples"):
        Batches(source_of(0), 8, mesh1)


@settings(max_examples=50, deadline=None)
@given(
    size=st.integers(1, 300),
    batch_size=st.integers(1, 400),
    num_epochs=st.integers(1, 9),
    at_least=st.integers(1, 2000),
)
def test_steps_are_whole_passes_that_take_every_example(size, batch_size, num_epochs, at_least):
    data = ArraySplits("numbers", source_of(size))
    one_pass = len(range(0, size, batch_size))
    assert data.steps(num_epochs, batch_size) == num_epochs * one_pass
    steps = data.steps(num_epochs, batch_size, at_least=at_least)
    assert steps % one_pass == 0
    assert steps >= max(num_epochs * one_pass, at_least)
    assert steps == num_epochs * one_pass or steps - one_pass < at_least  # no pass too many


def test_the_steps_of_a_fold_are_those_of_its_own_training_examples():
    data = ArraySplits("numbers", source_of(20), {"validation": source_of(10)})
    assert data.steps(2, 8) == 2 * 3
    assert [fold.steps(2, 8) for fold in Folds(data, 2)] == [2 * 2, 2 * 2]  # 15 examples each


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0, 8), "num_epochs=0 is out of range; it must be a whole number, at least 1"),
        ((-1, 8), "num_epochs=-1 is out of range"),
        ((1.5, 8), "num_epochs=1.5 is out of range"),
        ((1, 0), "batch_size=0 is out of range; it must be a whole number, at least 1"),
        ((1, True), "batch_size=True is out of range"),
        ((10**400, 8), "at most 2,147,483,647"),
    ],
)
def test_numbers_that_give_no_steps_are_one_line(numbers, message):
    with pytest.raises(UserError, match=message) as caught:
        ArraySplits("numbers", source_of(5)).steps(*numbers)
    assert "\n" not in str(caught.value)


def test_there_are_no_steps_without_training_examples():
    with pytest.raises(UserError, match="the training split has no examples; choose another data set"):
        ArraySplits("numbers", source_of(0)).steps(1, 8)
