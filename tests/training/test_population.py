"""The axis of the runs that train at the same time: who has it, and that run k is what it is alone."""

import inspect

import jax
import numpy as np
import pytest

from dl.training.batches import make_batches
from dl.training.population import Population
from dl.training.program import Program
from dl.training.single import SINGLE, Single
from tests.helpers import EXPERIMENT


def public(cls):
    return {name for name in vars(cls) if not name.startswith("_")}


def test_whoever_holds_a_population_may_hold_a_single_run():
    assert public(Single) <= public(Population)
    for name in public(Single):
        one, several = getattr(Single, name), getattr(Population, name)
        if callable(one):
            assert inspect.signature(one).parameters.keys() == inspect.signature(several).parameters.keys()
    assert len(SINGLE) == 1


def test_an_option_without_a_value_for_each_run_is_refused():
    with pytest.raises(ValueError, match="rate has 1 values for 2 runs"):
        Population((0, 1), {"rate": (0.1,)}, lambda options: EXPERIMENT.tx)
    with pytest.raises(ValueError, match="tx_of is None"):
        Population((0, 1), {"rate": (0.1, 0.2)})


def test_each_run_has_the_batches_that_it_has_alone(mesh8):
    population = Population((3, 5))
    together = make_batches(EXPERIMENT, mesh8, population)["train"]
    source, size = EXPERIMENT.data.train, EXPERIMENT.batch_size
    for k, seed in enumerate(population.seeds):
        alone = SINGLE.batches(source, size, mesh8, seed)
        for step in (0, 3, 5):  # the last batch of an epoch is padded
            for name, values in alone[step].items():
                np.testing.assert_array_equal(together[step][name][k], values)
            for all_rows, rows in zip(together.rows(step), alone.rows(step), strict=True):
                np.testing.assert_array_equal(all_rows[k], rows)


@pytest.mark.parametrize("num_runs", [3, 8])
def test_the_runs_are_spread_over_the_devices_where_that_divides(mesh8, num_runs):
    population = Population(tuple(range(num_runs)))
    batch = make_batches(EXPERIMENT, mesh8, population)["train"][0]["features"]
    assert batch.shape == (num_runs, 16, 3)
    on_each = (1, 16, 3) if num_runs == 8 else (3, 2, 3)
    assert {shard.data.shape for shard in batch.addressable_shards} == {on_each}


def test_no_array_of_a_single_run_has_an_axis_of_runs(mesh1):
    one = Program(EXPERIMENT, mesh1, make_batches(EXPERIMENT, mesh1))
    population = Population((0, 1, 2))
    three = Program(EXPERIMENT, mesh1, make_batches(EXPERIMENT, mesh1, population), population)
    shapes_one, shapes_three = (
        [leaf.shape for leaf in jax.tree.leaves(program.abstract_state)] for program in (one, three)
    )
    assert shapes_three == [(3, *shape) for shape in shapes_one]
    assert one.abstract_state.step.shape == ()
    assert one.facts == three.facts
