"""The networks in `dl`: how many examples a second its compiled steps train, with their compilation time."""

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import dl
from benchmarks.accelerator.sizes import Size
from dl import optimizers, task
from dl.data import ArraySource, ArraySplits
from dl.data.pipeline import Batches
from dl.models.airbench import Airbench
from dl.models.gpt2 import GPT2
from dl.models.resnet import resnet18
from dl.models.scaling import minus_one_to_one
from dl.models.vit import ViT
from dl.sharding import make_mesh
from dl.training.advance import FusedSteps, SingleSteps
from dl.training.program import Program
from dl.training.progress import Stopwatch
from dl.training.run_options import with_run_options


class Measured(NamedTuple):
    """What training was measured to do.

    Attributes:
      rate: examples a second; of a language model, tokens a second.
      flops: model FLOPs of one example (or token) of training, without padding.
      compile_seconds: compilation time.
      peak_bytes: largest memory of the device, as XLA reports it; 0 if it reports none.
    """

    rate: float
    flops: float
    compile_seconds: float
    peak_bytes: int


def model_of(name: str, size: Size) -> Any:
    """Returns the network of a name."""
    if name == "resnet18":
        return resnet18(10, small_images=True, scaling=minus_one_to_one)
    if name == "vit_s":
        return ViT(1000, size.dim, size.num_layers, size.num_heads, patch_size=size.patch_size)
    if name == "airbench":
        return Airbench(10, size.widths)
    return GPT2(size.vocab_size, size.length, size.dim, size.num_layers, size.num_heads, is_scanned=True)


def experiment_of(name: str, size: Size) -> dl.Experiment:
    """Returns the experiment of a name, which computes in bfloat16 with float32 parameters."""
    rng = np.random.default_rng(0)
    model = model_of(name, size)
    num_examples = 4 * size.batch_size
    if name == "gpt2":
        tokens = rng.integers(0, size.vocab_size, (num_examples, size.length + 1), np.int32)
        features = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}
        learned = task.language_model(model)
    else:
        images = rng.integers(0, 256, (num_examples, size.side, size.side, 3), np.uint8)
        features = {"image": images, "label": rng.integers(0, 10, num_examples).astype(np.int32)}
        learned = task.classification(model)
    sgd = optimizers.sgd(0.1, 0.9, nesterov=True)
    experiment = dl.Experiment(
        data=ArraySplits("random", train=ArraySource(features)),
        task=learned,
        tx=sgd if name in ("resnet18", "airbench") else optimizers.adamw(1e-3, weight_decay=0.1),
        num_steps=10**6,
        batch_size=size.batch_size,
    )
    return with_run_options(experiment, {"precision": "bfloat16"})


def measure(name: str, size: Size, seconds: float) -> Measured:
    """Trains a network for some seconds after its first steps."""
    mesh = make_mesh(devices=jax.devices()[:1])
    experiment = experiment_of(name, size)
    batches = Batches(experiment.data.train, experiment.batch_size, mesh, seed=0)
    program = Program(experiment, mesh, {"train": batches})
    steps = program.compile(batches)
    state, waiting = program.init(), Stopwatch()
    calls: FusedSteps | SingleSteps
    if steps.fused is not None:
        calls = FusedSteps(steps.fused, batches, waiting)
    else:
        assert steps.train is not None
        calls = SingleSteps(steps.train, batches.iterate(0, experiment.num_steps), waiting)
    step, first, started = 0, 0, 0.0
    in_flight: list[Any] = []
    begun = time.perf_counter()
    while not started or time.perf_counter() - started < seconds:
        state, call = calls.advance(state, step, experiment.num_steps)
        step = call.steps[-1]
        in_flight.append(call)
        if len(in_flight) > calls.max_in_flight:
            list(in_flight.pop(0).fetch())
            calls.ended()
        if not started and step >= 8 and time.perf_counter() - begun > seconds / 4:
            jax.block_until_ready(state)
            first, started = step, time.perf_counter()
    jax.block_until_ready(state)
    elapsed = time.perf_counter() - started
    per_example = size.length if name == "gpt2" else 1
    statistics = jax.devices()[0].memory_stats() or {}
    return Measured(
        (step - first) * size.batch_size * per_example / elapsed,
        program.facts["train_flops_per_example_without_padding"] / per_example,
        steps.seconds,
        statistics.get("peak_bytes_in_use", 0),
    )


def ceiling(side: int, seconds: float) -> float:
    """Returns the FLOP/s of the product of two bfloat16 matrices, the best of several runs."""
    left = jnp.ones((side, side), jnp.bfloat16)
    product = jax.jit(lambda a, b: jax.lax.dot(a, b, preferred_element_type=jnp.bfloat16))
    product(left, left).block_until_ready()
    best, begun = 0.0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        started = time.perf_counter()
        out = left
        for _ in range(10):
            out = product(left, out)
        out.block_until_ready()
        best = max(best, 10 * 2 * side**3 / (time.perf_counter() - started))
    return best
