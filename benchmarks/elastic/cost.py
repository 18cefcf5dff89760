"""What `--reduction exact` costs: the time of its steps over that of fast ones, on one device.

    python -m benchmarks.elastic.cost [--short]

Both kinds of steps run by turns in this process, on the same batches of 128 MNIST images. Each turn gives a
ratio; the median and the range are printed.
"""

import dataclasses
import statistics
import sys
import time

import jax

from dl.data.pipeline import Batches
from dl.experiment import Experiment
from dl.sharding import make_mesh
from dl.training.program import Program
from experiments.mnist_cnn import experiment as mnist_cnn
from experiments.mnist_mlp import experiment as mnist_mlp


def cost(experiment: Experiment, num_turns: int, num_steps: int) -> tuple[list[float], list[float]]:
    """Returns the seconds of a fast step and of an exact step in each turn.

    Args:
      experiment: the experiment.
      num_turns: number of turns; one more before them is not counted.
      num_steps: number of steps of each kind in a turn.
    """
    mesh = make_mesh({"data": 1})
    batches = {"train": Batches(experiment.data.train, experiment.batch_size, mesh, seed=experiment.seed)}
    programs = [
        Program(dataclasses.replace(experiment, reduction=reduction), mesh, batches)
        for reduction in ("fast", "exact")
    ]
    steps = [program.compile().train for program in programs]
    states = [program.init() for program in programs]
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(num_turns + 1):
        for kind in (0, 1):
            jax.block_until_ready(states[kind])
            started = time.perf_counter()
            for step in range(num_steps):
                states[kind], _ = steps[kind](states[kind], batches["train"][turn * num_steps + step])
            jax.block_until_ready(states[kind])
            if turn:
                seconds[kind].append((time.perf_counter() - started) / num_steps)
    return seconds


def main(is_short: bool) -> None:
    """Prints the table in Markdown."""
    cases = {  # with the number of steps in a turn
        "mnist_mlp": (mnist_mlp(dataset="mnist"), 200),
        "mnist_cnn": (mnist_cnn(dataset="mnist"), 5),
    }
    print(
        "| experiment | fast step | exact step | exact / fast | range |\n|---|---:|---:|---:|---|", flush=True
    )
    for name, (experiment, num_steps) in cases.items():
        fast, exact = cost(experiment, 3 if is_short else 10, num_steps)
        ratios = [one / other for one, other in zip(exact, fast, strict=True)]
        milliseconds = [f"{statistics.median(each) * 1e3:.2f} ms" for each in (fast, exact)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(
            f"| {name} | {' | '.join(milliseconds)} | {statistics.median(ratios):.2f} | {spread} |",
            flush=True,
        )


if __name__ == "__main__":
    main("--short" in sys.argv[1:])
