"""A table of compressed models: who dominates whom, and all rows of one study."""

import itertools
import json

import numpy as np
import pytest

from dl.errors import UserError
from dl.methods.magnitude_pruning import MagnitudePruning
from dl.methods.quantization import calibrate
from dl.runs.console import Console
from dl.studies.compression_measures import Measured, time_in_turns
from dl.studies.compression_table import Row, compression_table, dominated
from dl.studies.runs import with_defaults
from tests.helpers import EXPERIMENT


def measured(name, value, num_bytes, seconds, metric="accuracy"):
    return Measured(name, metric, value, None, 1, 1, 1, num_bytes, 1, {1: seconds}, None)


@pytest.mark.parametrize(("metric", "sign"), [("accuracy", -1), ("loss", 1)])
def test_a_row_is_dominated_as_brute_force_says(metric, sign):
    random = np.random.default_rng(0)
    values, sizes, times = random.integers(0, 4, (3, 20))
    rows = [measured(str(k), float(values[k]), int(sizes[k]), float(times[k]) + 1, metric) for k in range(20)]
    costs = np.stack([sign * values, sizes, times], -1)
    expected = {
        str(k)
        for k in range(20)
        for other in range(20)
        if (costs[other] <= costs[k]).all() and (costs[other] < costs[k]).any()
    }
    assert dominated(rows) == expected


def test_functions_are_called_in_turns_in_a_changing_order():
    calls = []
    seconds = time_in_turns({name: lambda name=name: calls.append(name) for name in "abc"}, num_rounds=20)
    assert set(seconds) == set("abc")
    assert all(0 < value < 0.01 for value in seconds.values())
    turns = "".join(one for one, other in itertools.pairwise([*calls, ""]) if one != other)[-30:]
    assert all(turns.count(name) >= 7 for name in "abc")
    assert len({turns[at : at + 3] for at in range(28)}) > 3


def experiment(learning_rate: float = 1e-2):
    return EXPERIMENT


def refused(experiment, variables):
    raise UserError("it has no kernel")


@pytest.mark.slow
def test_the_study_makes_all_rows_and_says_which_could_not_be_made(tmp_path):
    rows = {
        "sparse": Row(MagnitudePruning(sparsity=0.5), {}),
        "none": Row(refused, None),
        "of-none": Row(calibrate, None, of="none"),
        "sparse-int8": Row(calibrate, None, of="sparse"),
    }
    quiet = Console(is_quiet=True)
    found = compression_table(experiment, rows, folder=tmp_path / "study", console=quiet)
    assert [row.name for row in found.rows] == ["parent", "sparse", "sparse-int8"]
    assert found.failures == {"none": "it has no kernel", "of-none": "there is no none"}
    assert "none was not made: it has no kernel." in found.markdown
    record = json.loads((tmp_path / "study" / "compression.json").read_text())
    assert [row["name"] for row in record["rows"]] == ["parent", "sparse", "sparse-int8"]
    assert record["options"] == with_defaults(experiment, {})
    assert (tmp_path / "study" / "compression.png").stat().st_size > 1000
    again = compression_table(experiment, rows, folder=tmp_path / "study", console=quiet)
    assert [row.value for row in again.rows] == [row.value for row in found.rows]
    with pytest.raises(UserError, match="holds another table of compressed models"):
        compression_table(experiment, {"sparse": rows["sparse"]}, folder=tmp_path / "study", console=quiet)
