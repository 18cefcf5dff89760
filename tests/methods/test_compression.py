"""Records of compressions: they come back as they were, and a run with one is loaded without its parent."""

import dataclasses

import jax
import numpy as np
import pytest

from dl.errors import UserError
from dl.methods.compression import Compression, as_record, as_stored, from_record, records_of
from dl.methods.no_training import NoTraining
from dl.training.loop import train
from dl.training.run_options import with_run_options
from tests.helpers import EXPERIMENT


def test_a_record_comes_back_as_the_compression():
    assert as_record(NoTraining()) == {"method": "no_training"}
    assert from_record({"method": "no_training"}) == NoTraining()
    assert isinstance(NoTraining(), Compression)


@pytest.mark.parametrize(
    ("recorded", "message"),
    [
        ({"method": "magic"}, "the compression 'magic' is unknown"),
        ({}, "the compression 'None' is unknown"),
        ({"method": "no_training", "rank": 3}, "no field 'rank'"),
        ([3], "is not a record"),
        ("int8", "is not a record"),
    ],
)
def test_a_record_that_is_not_known_is_refused(recorded, message):
    with pytest.raises(UserError, match=message) as caught:
        with_run_options(EXPERIMENT, {"compression": recorded})
    assert "\n" not in str(caught.value)


def test_a_run_records_none_one_or_several():
    one = {"method": "no_training"}
    assert records_of(None) == []
    assert records_of(one) == [one]
    assert records_of([one, one]) == [one, one]


def test_what_is_stored_is_undone_from_the_outside():
    class Adds(NoTraining):
        def stored(self, variables):
            return {"params": [*variables["params"], "inner"]}

    class AddsMore(NoTraining):
        def stored(self, variables):
            return {"params": [*variables["params"], "outer"]}

    assert as_stored([Adds(), NoTraining(), AddsMore()], {"params": []})["params"] == ["outer", "inner"]


def test_no_training_changes_no_variable():
    before = train(dataclasses.replace(EXPERIMENT, num_steps=2), with_baseline=False).variables
    run = with_run_options(
        dataclasses.replace(EXPERIMENT, warm_start=before), {"compression": {"method": "no_training"}}
    )
    after = train(run, with_baseline=False)
    jax.tree.map(np.testing.assert_array_equal, before, after.variables)
    assert after.record["steps"] == 1
    assert "test" in after.metrics
