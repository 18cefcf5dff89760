"""What the training loop costs over a bare, hand-written jit loop on the same batches.

    python -m benchmarks.loop_overhead [NUM_STEPS]

Both run in this process, by turns. The bare loop gathers its batch from arrays on the device, steps, and
waits once at the end. The loop's time holds metrics, log lines and checkpoints, not evaluation. Each turn
gives a ratio; the median and the range are printed. The loop computes several steps in each call. The bars
are medians of 1.02, and 1.10 for the short step.
"""

import contextlib
import dataclasses
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax

from dl.data.pipeline import Batches
from dl.experiment import Experiment
from dl.runs.console import Console
from dl.sharding import make_mesh
from dl.training.loop import train
from dl.training.program import Program
from experiments.mlp_342 import experiment as mlp_342
from experiments.mnist_cnn import experiment as mnist_cnn

REPEATS = 6


def bare_seconds(experiment: Experiment) -> float:
    """Returns the seconds of a loop without anything around it."""
    mesh = make_mesh()
    batches = {"train": Batches(experiment.data.train, experiment.batch_size, mesh, seed=experiment.seed)}
    program = Program(experiment, mesh, batches)
    steps = program.compile()
    state = jax.block_until_ready(program.init())
    started = time.perf_counter()
    for step in range(experiment.num_steps):
        state, _ = steps.train(state, batches["train"][step])
    jax.block_until_ready(state)
    return time.perf_counter() - started


def loop_seconds(experiment: Experiment) -> float:
    """Returns the seconds that `train` spends on the same steps, and on saving."""
    with tempfile.TemporaryDirectory() as folder:
        console = Console(is_quiet=True)
        result = train(experiment, Path(folder) / "run", mesh=make_mesh(), console=console).record
        return result["train_seconds"] + result["saving_seconds"]


def main() -> None:
    num_steps = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    cases = {  # the last one shows the cost of a step itself
        "mnist_cnn, pyramid": dataclasses.replace(mnist_cnn(), num_steps=num_steps),
        "mnist_cnn, classic": dataclasses.replace(mnist_cnn(network="classic"), num_steps=num_steps),
        "mlp_342 (0.3 ms a step)": dataclasses.replace(mlp_342(), num_steps=50 * num_steps),
    }
    with contextlib.suppress(AttributeError):
        print(f"{len(os.sched_getaffinity(0))} cores, {jax.devices()[0].device_kind}, {REPEATS} repeats")
    for name, experiment in cases.items():
        # Evaluation is no part of the comparison.
        data = dataclasses.replace(experiment, eval_every=experiment.num_steps)
        bare, loop = [], []
        for _ in range(REPEATS):
            bare.append(bare_seconds(data))
            loop.append(loop_seconds(data))
        # Of neighbours: a machine may change its speed between two turns, seldom within one.
        ratios = [one / other for one, other in zip(loop, bare, strict=True)]
        median, each = statistics.median(ratios), statistics.median(bare) / experiment.num_steps * 1e3
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
        print(f"{name}: bare {each:.2f} ms a step, loop / bare = {median:.3f} ({spread})")


if __name__ == "__main__":
    main()
