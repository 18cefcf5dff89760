"""Magnitude pruning: exact counts, the schedule of the paper, and zeros that stay zeros."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dl import task
from dl.data import ArraySource, ArraySplits
from dl.errors import UserError
from dl.methods.kernel_order import first_and_last, kernels_in_order
from dl.methods.magnitude_pruning import MagnitudePruning, parse_n_of_m, pruned, sparsity_by_layer
from dl.models.mobilenet import MobileNetV2
from dl.optimizers import adamw
from dl.training.loop import train
from dl.training.signals import Stopped
from tests.helpers import EXPERIMENT, SignallingConsole, quick_jit

RANDOM = np.random.default_rng(0)
PARAMS = {
    "first": {
        "kernel": jnp.asarray(RANDOM.normal(size=(3, 3, 8, 6)), jnp.float32),
        "bias": jnp.zeros(6),
    },
    "last": {
        "kernel": jnp.asarray(3 * RANDOM.normal(size=(12, 5)), jnp.float32),
        "bias": jnp.asarray(RANDOM.normal(size=5), jnp.float32),
    },
}

BATCH = {"features": np.zeros((2, 3), np.float32)}


def zeros(params):
    return {name: int((np.asarray(layer["kernel"]) == 0).sum()) for name, layer in params.items()}


def converted(pruning, params=PARAMS):
    return pruning.converted({"params": params})["params"]


def test_each_layer_has_exactly_its_zeros_the_smallest():
    params = converted(MagnitudePruning(sparsity=0.7, scope="layer"))
    assert zeros(params) == {"first": round(0.7 * 432), "last": round(0.7 * 60)}
    for name, layer in params.items():
        before, after = np.abs(PARAMS[name]["kernel"]), np.abs(layer["kernel"])
        assert before[after == 0].max() < before[after > 0].min()
        np.testing.assert_array_equal(layer["bias"], PARAMS[name]["bias"])


def test_all_layers_share_one_threshold_in_the_global_scope():
    params = converted(MagnitudePruning(sparsity=0.7))
    every = np.concatenate([np.abs(np.ravel(layer["kernel"])) for layer in PARAMS.values()])
    threshold = np.sort(every)[round(0.7 * 492)]
    for name, layer in params.items():
        kernel = PARAMS[name]["kernel"]
        np.testing.assert_array_equal(layer["kernel"], np.where(np.abs(kernel) < threshold, 0, kernel))
    total = sparsity_by_layer(params)
    assert total["total"] == round(0.7 * 492) / 492
    assert total["last/kernel"] == zeros(params)["last"] / 60


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_equal_magnitudes_are_counted_exactly(scope):
    equal = jax.tree.map(jnp.ones_like, PARAMS)
    assert sum(zeros(converted(MagnitudePruning(sparsity=0.5, scope=scope), equal)).values()) == 246


def test_n_of_m_keeps_the_largest_of_consecutive_inputs():
    params = converted(MagnitudePruning(n_of_m="2:4"))
    for name, layer in params.items():
        kernel, kept = (np.asarray(tree["kernel"]) for tree in (PARAMS[name], layer))
        kernel, kept = (a.reshape(-1, a.shape[-2], a.shape[-1]) for a in (kernel, kept))
        for window in range(len(kernel)):
            for start in range(0, kernel.shape[1], 4):
                for output in range(kernel.shape[2]):
                    block = kernel[window, start : start + 4, output]
                    expected = np.where(np.abs(block) >= np.sort(np.abs(block))[2], block, 0)
                    np.testing.assert_array_equal(kept[window, start : start + 4, output], expected)
    only_first = converted(MagnitudePruning(n_of_m="1:8"))
    assert zeros(only_first) == {"first": 432 * 7 // 8, "last": 0}


def test_the_schedule_is_that_of_the_paper():
    pruning = MagnitudePruning(sparsity=0.8, initial_sparsity=0.2, start=4, every=3, num_prunings=5)
    for step in range(30):
        expected = 0.0
        if step >= 4:
            t = min(4 + 3 * ((step - 4) // 3), 4 + 15)
            expected = 0.8 + (0.2 - 0.8) * (1 - (t - 4) / 15) ** 3
        assert pruning.sparsity_at(step) == pytest.approx(expected)


@pytest.mark.parametrize(
    "tx", [optax.sgd(0.1, momentum=0.9), optax.adamw(0.1, weight_decay=0.5), adamw(0.1, weight_decay=0.5)]
)
def test_zeros_follow_the_schedule_and_never_come_back(tx):
    pruning = MagnitudePruning(
        sparsity=0.8, initial_sparsity=0.2, start=2, every=3, num_prunings=2, leave_out=("last",)
    )
    tx = pruned(tx, pruning)
    params, state = PARAMS, tx.init(PARAMS)

    @jax.jit
    def step(params, state, key):
        gradient = jax.tree.map(lambda leaf: jax.random.normal(key, leaf.shape), params)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    was_zero = np.zeros((3, 3, 8, 6), bool)
    for number in range(1, 14):
        params, state = step(params, state, jax.random.key(number))
        is_zero = np.asarray(params["first"]["kernel"]) == 0
        assert is_zero.sum() == round(pruning.sparsity_at(number) * 432)
        assert is_zero[was_zero].all()
        was_zero = is_zero
    assert zeros(params)["last"] == 0


@pytest.mark.parametrize("pruning", [MagnitudePruning(n_of_m="1:2", start=2), MagnitudePruning(sparsity=0.5)])
def test_pruning_once_also_prunes_parameters_that_were_not_converted(pruning):
    tx = pruned(optax.adam(0.1), pruning)
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(3):
        updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
        params = optax.apply_updates(params, updates)
    assert sum(zeros(params).values()) == 246


@pytest.mark.slow
def test_a_stopped_run_keeps_its_zeros_and_resumes_with_the_same_bits(tmp_path, mesh1):
    pruning = MagnitudePruning(sparsity=0.75, every=2, num_prunings=5)  # it ends at step 10
    experiment = pruning.changed(EXPERIMENT)
    whole = train(experiment, mesh=mesh1)
    assert sparsity_by_layer(whole.params)["total"] == 0.75
    with pytest.raises(Stopped):
        train(experiment, tmp_path / "run", mesh=mesh1, log_every=1, console=SignallingConsole(5))
    resumed = train(experiment, tmp_path / "run", mesh=mesh1)
    chex.assert_trees_all_equal(whole.params, resumed.params)


@pytest.mark.slow
def test_the_average_of_the_parameters_keeps_its_zeros(mesh1):
    once = MagnitudePruning(sparsity=0.5)
    averaged = dataclasses.replace(EXPERIMENT, ema_decay=0.9)
    start = once.converted(
        jax.tree.map(np.asarray, quick_jit(EXPERIMENT.task.init)(jax.random.key(0), BATCH))
    )
    result = train(dataclasses.replace(once.changed(averaged), warm_start=start), mesh=mesh1)
    assert sparsity_by_layer(result.params)["total"] == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "sparsity=None and n_of_m=None: give one of them"),
        ({"sparsity": 0.5, "n_of_m": "2:4"}, "give one of them"),
        ({"sparsity": 1.0}, "sparsity=1.0"),
        ({"sparsity": 0.5, "scope": "all"}, "scope='all' is unknown; choose global or layer"),
        ({"sparsity": 0.5, "initial_sparsity": 0.6}, "initial_sparsity=0.6 is more than sparsity=0.5"),
        ({"n_of_m": "4:2"}, "n_of_m='4:2' is not understood; write N:M"),
        ({"n_of_m": "2:4", "num_prunings": 3}, "set num_prunings=0"),
        ({"sparsity": 0.5, "leave_out": "head"}, "must be a tuple"),
    ],
)
def test_a_mistake_is_one_line(options, message):
    with pytest.raises(UserError, match=message):
        MagnitudePruning(**options)


def test_the_first_and_the_last_layer_are_left_out():
    source = ArraySource(
        {"image": np.zeros((8, 32, 32, 3), np.float32), "label": np.arange(8, dtype=np.int32)}
    )
    model = MobileNetV2(10, stages=((1, 16, 1, 1),), features=32)
    data = ArraySplits("zeros", train=source, evaluations={"test": source})
    experiment = dataclasses.replace(EXPERIMENT, data=data, task=task.classification(model), preprocess=None)
    assert kernels_in_order(experiment) == [
        "stem/conv/kernel",
        "block0/depthwise/conv/kernel",
        "block0/project/conv/kernel",
        "last/conv/kernel",
        "head/kernel",
    ]
    params = jax.eval_shape(experiment.task.init, jax.random.key(0), {"image": source.arrays["image"]})[
        "params"
    ]
    pruning = MagnitudePruning(sparsity=0.5, leave_out=first_and_last(experiment))
    assert list(pruning.masks(jax.tree.map(lambda leaf: jnp.ones(leaf.shape), params), 0)) == [
        "block0/depthwise/conv/kernel",
        "block0/project/conv/kernel",
        "last/conv/kernel",
    ]


def test_frozen_kernels_stay_as_they_are():
    frozen = dataclasses.replace(EXPERIMENT, frozen=("Dense_0",))
    pruning = MagnitudePruning(sparsity=0.5, leave_out=frozen.frozen)
    before, after = (train(made).variables["params"] for made in (frozen, pruning.changed(frozen)))
    np.testing.assert_array_equal(after["Dense_0"]["kernel"], before["Dense_0"]["kernel"])
    assert sparsity_by_layer(after)["Dense_0/kernel"] == 0
    assert sparsity_by_layer(after)["Dense_1/kernel"] == pytest.approx(0.5, abs=0.05)


def test_what_cannot_be_pruned_is_refused():
    for options, message in (
        ({"sparsity": 0.5, "kernels": ("weight",)}, "the pattern 'weight' matches no parameter"),
        ({"sparsity": 0.5, "leave_out": ("kernel",)}, "the model has no kernel that is pruned"),
        ({"n_of_m": "3:7"}, "no kernel whose number of inputs fits n_of_m=3:7"),
    ):
        with pytest.raises(UserError, match=message):
            converted(MagnitudePruning(**options))
    frozen = dataclasses.replace(EXPERIMENT, frozen=("Dense_0",))
    with pytest.raises(UserError, match="Dense_0/kernel is frozen and would be pruned"):
        MagnitudePruning(sparsity=0.5).changed(frozen)
    with pytest.raises(UserError, match="leave_out: the pattern 'weight' matches no parameter"):
        MagnitudePruning(sparsity=0.5, leave_out=("weight",)).changed(EXPERIMENT)
    averaged = dataclasses.replace(EXPERIMENT, ema_decay=0.9)
    with pytest.raises(UserError, match="the average is not sparse"):
        MagnitudePruning(sparsity=0.5, num_prunings=2).changed(averaged)
    with pytest.raises(UserError, match="the last pruning is at step 20, and the run has 12 steps"):
        MagnitudePruning(sparsity=0.5, num_prunings=2, every=10).changed(EXPERIMENT)
    tx = optax.contrib.schedule_free_adamw(0.1)
    with pytest.raises(UserError, match="a schedule-free optimizer averages"):
        pruned(tx, MagnitudePruning(sparsity=0.5, num_prunings=2)).init(PARAMS)
    assert parse_n_of_m("2:4") == (2, 4)
