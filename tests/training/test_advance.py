"""Steps that are fused into one call: the bits of single steps, however the steps are divided into calls."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import dl
from dl import optimizers, task
from dl.data import ArraySource, ArraySplits
from dl.models.cnn import CNN
from dl.models.mlp import MLP
from dl.runs.console import Console
from dl.system.onednn import native_kernels
from dl.training import advance
from dl.training.batches import make_batches
from dl.training.program import Program
from dl.training.progress import Stopwatch

NUM_STEPS = 23


class FromHost:
    """Examples that are not held on the device."""

    def __init__(self, source):
        self.spec, self._source = source.spec, source

    def __len__(self):
        return len(self._source)

    def __getitem__(self, indices):
        return self._source[indices]


def experiment_of(model, batch_size=8, wrap=lambda source: source):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (60, 8, 8, 1), np.uint8), rng.integers(0, 3, 60)
    data = {
        name: ArraySource({"image": images[rows], "label": labels[rows].astype(np.int32)})
        for name, rows in (("train", slice(0, 40)), ("validation", slice(40, 60)))
    }
    return dl.Experiment(
        data=ArraySplits("random", wrap(data["train"]), {"validation": data["validation"]}),
        task=task.classification(model),
        tx=optimizers.adamw(1e-2, weight_decay=0.1),
        num_steps=NUM_STEPS,
        batch_size=batch_size,
        augment=lambda key, example: {
            **example,
            "image": example["image"] + 0.1 * jax.random.normal(key, example["image"].shape),
        },
    )


MODELS = {
    "perceptron": lambda: MLP(hidden=(16,), num_classes=3),
    "convolutions": lambda: CNN((32,), (16,), 3, padding="SAME"),
}


def leaves_of(tree):
    leaves = jax.tree.leaves(tree)
    is_key = [jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves]
    return [
        np.asarray(jax.random.key_data(leaf) if key else leaf)
        for leaf, key in zip(leaves, is_key, strict=True)
    ]


@pytest.mark.parametrize("name", MODELS)
def test_fused_steps_have_the_bits_of_single_steps(name, mesh1):
    experiment = experiment_of(MODELS[name]())
    batches = make_batches(experiment, mesh1)
    program = Program(experiment, mesh1, batches)
    single, steps = program.compile(), program.compile(batches["train"])
    assert single.fused is None
    assert steps.train is None
    state, expected = program.init(), []
    for step in range(NUM_STEPS):
        state, metrics = single.train(state, batches["train"][step])
        expected.append(np.asarray(metrics.sums))
    rows, fused = batches["train"].rows_of(range(advance.MAX_STEPS)), program.init()
    first, found = 0, []
    for count in (1, 0, 5, 16, 1):  # any division into calls
        arguments = (batches["train"].examples, rows, np.int32(first), np.int32(count))
        fused, metrics = steps.fused(fused, *arguments)
        found.extend(np.asarray(metrics.sums)[:count])
        first += count
    assert first == NUM_STEPS
    for one, other in zip(leaves_of(state), leaves_of(fused), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(expected, found)


def end_of(experiment, mesh):
    result = dl.train(experiment, mesh=mesh, console=Console(is_quiet=True))
    timed = ("examples_per_second", "seconds")
    history = [{name: row[name] for name in row if name not in timed} for row in result.history]
    return result.record["params_digest"], history


def test_a_run_ends_in_the_same_bits_for_any_size_of_its_calls(mesh1, monkeypatch):
    experiment = dataclasses.replace(experiment_of(MODELS["perceptron"]()), num_steps=200, eval_every=70)
    sizes = []
    advance_call = advance.FusedSteps.advance

    def note_size(self, *arguments):
        state, call = advance_call(self, *arguments)
        sizes.append(len(call.steps))
        return state, call

    monkeypatch.setattr(advance.FusedSteps, "advance", note_size)
    expected = end_of(experiment, mesh1)
    assert max(sizes) > 1
    assert sum(sizes) == 200
    monkeypatch.setattr(advance, "CALL_SECONDS", 0.0)
    sizes.clear()
    assert end_of(experiment, mesh1) == expected
    assert set(sizes) == {1}
    sizes.clear()
    streamed = experiment_of(MODELS["perceptron"](), wrap=FromHost)
    assert end_of(dataclasses.replace(streamed, num_steps=200, eval_every=70), mesh1) == expected
    assert not sizes  # each of its calls computes one step


@pytest.mark.parametrize("is_waiting", [False, True])
def test_calls_take_as_many_steps_as_fit_and_do_not_count_what_came_between(monkeypatch, is_waiting):
    """A call is computed after it returns, or while the caller waits; then its end is noticed late."""
    clock, speed = [100.0], [0.0]
    monkeypatch.setattr(advance.time, "monotonic", lambda: clock[0])

    class Rows:
        examples = ()

        def rows_of(self, steps):
            return {}

    def compute(state, examples, rows, first, count):
        clock[0] += int(count) * speed[0] * is_waiting
        return state, SimpleNamespace(sums=SimpleNamespace(is_ready=lambda: is_waiting))

    calls = advance.FusedSteps(compute, Rows(), Stopwatch())

    def size_of_next(step, seconds_per_step):
        speed[0] = seconds_per_step
        _, call = calls.advance(None, step, 10**6)
        clock[0] += 3.0 if is_waiting else len(call.steps) * seconds_per_step
        calls.ended()
        return call.steps[-1], len(call.steps)

    step, sizes = 0, []
    for _ in range(40):
        step, size = size_of_next(step, advance.CALL_SECONDS / 9.5)
        sizes.append(size)
    assert sizes[:10] == [1, 1, 2, 3, 4, 5, 6, 7, 8, 9]  # the end of the first call starts the clock
    assert max(sizes) == 9
    clock[0] += 60.0  # an evaluation
    before = size_of_next(step, advance.CALL_SECONDS / 9.5)
    assert size_of_next(before[0], advance.CALL_SECONDS / 9.5)[1] == 9


def test_the_end_of_an_epoch_and_padding_fall_inside_a_call(mesh1):
    experiment = experiment_of(MODELS["perceptron"](), batch_size=16)  # the third batch of an epoch is padded
    batches = make_batches(experiment, mesh1)["train"]
    rows = batches.rows_of(range(2, 5))
    for place, step in enumerate(range(2, 5)):
        index, mask = batches.rows(step)
        np.testing.assert_array_equal(rows["index"][place], index)
        np.testing.assert_array_equal(rows["mask"][place], mask)
    assert not np.asarray(rows["mask"]).all()


def lowered_from(program):
    return program.traced[0].traced, program.abstract_state


def test_steps_are_not_fused_where_a_loop_is_slower_or_impossible(mesh1, mesh8):
    experiment = experiment_of(MODELS["convolutions"]())
    batches = make_batches(experiment, mesh1)["train"]
    with native_kernels():  # a convolution of XLA in a loop uses one thread
        program = Program(experiment, mesh1, {"train": batches})
        assert advance.lower_fused(*lowered_from(program), batches, mesh1) is None
    experiment = experiment_of(MODELS["perceptron"]())
    batches = make_batches(experiment, mesh8)["train"]
    program = Program(experiment, mesh8, {"train": batches})
    assert advance.lower_fused(*lowered_from(program), batches, mesh8) is None
    exact = dataclasses.replace(experiment, reduction="exact")
    batches = make_batches(exact, mesh1)["train"]
    assert Program(exact, mesh1, {"train": batches}).compile(batches).fused is None
