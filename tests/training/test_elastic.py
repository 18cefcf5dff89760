"""What the campaign of elastic resuming reads from a log, and that it would notice a difference."""

import copy

import jax
import numpy as np
import pytest

import dl
from benchmarks.elastic import recorded
from benchmarks.elastic.__main__ import cases, differences, lost_or_repeated
from benchmarks.elastic.recorded import NUM_EXAMPLES, checksum, checksum_of, examples_of
from dl.runs.console import Console
from dl.sharding import make_mesh

MESH = {"data": 2, "fsdp": 2}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def result():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorded, "SECONDS_A_READ", 0.0)
        experiment = recorded.experiment(num_steps=13)
        return dl.train(experiment, mesh=make_mesh(MESH), log_every=1, console=Console(is_quiet=True))


@pytest.fixture
def rows(result):
    return [row for row in result.history if row["kind"] == "train"]


def test_a_row_names_the_examples_of_its_step(rows):
    for row in rows:
        epoch, within = divmod(row["step"] - 1, 6)
        raw = np.random.Philox(key=(0, epoch)).random_raw(NUM_EXAMPLES)
        assert examples_of(row) == sorted(np.argsort(raw, kind="stable")[16 * within : 16 * within + 16])
    assert not lost_or_repeated(rows)


def test_a_row_has_the_checksum_of_the_parameters_before_its_step(result, rows):
    start = jax.device_get(result.experiment.init(*key_and_batch(result.experiment))["params"])
    assert checksum_of(rows[0]) == checksum(start)
    assert checksum_of(rows[1]) != checksum(start)


def key_and_batch(experiment):
    batch = {"image": np.zeros((16, 8, 8, 3), np.float32), "label": np.zeros(16, np.int32)}
    key, _ = jax.random.split(jax.random.key(experiment.seed))
    return key, batch


def test_one_bit_changes_the_checksum(result):
    params = jax.tree.map(np.array, jax.device_get(result.params))
    before = checksum(params)
    for leaf in jax.tree.leaves(params):
        bits = leaf.reshape(-1).view(np.uint32)
        bits[-1] ^= 1
        assert checksum(params) != before
        bits[-1] ^= 1
    assert checksum(params) == before


def test_a_difference_is_found(rows):
    assert not differences(rows, rows)
    assert differences(rows[1:], rows[1:])[0] == "row 1 is that of step 2"
    swapped = [rows[1], rows[0], *rows[2:]]
    assert "step 2 has other examples" in differences(swapped, rows)
    for name, said in (("parameters_3", "parameters"), ("loss", "loss"), ("examples_0", "examples")):
        changed = copy.deepcopy(rows)
        changed[4][name] += 1.0
        assert differences(changed, rows) == [f"step 5 has other {said}"]
    (said,) = lost_or_repeated([rows[1], *rows[1:]])
    assert said == "the epoch from step 1 does not have every example once"


def test_the_pairs_of_layouts_are_24_and_differ():
    found = [(before[:2], after[:2]) for before, after in cases(is_short=False)]
    assert len(set(found)) == len(found) == 24
    assert all(before != after for before, after in found)
