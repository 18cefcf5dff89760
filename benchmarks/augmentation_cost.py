"""What augmentation inside the compiled step costs, and how long the step waits for its input.

    python -m benchmarks.augmentation_cost [IMAGE_SIZE [BATCH_SIZE]]

On the network of `experiments.transfer_mobilenetv2` with all its augmentations, training every parameter and
training only the new head. Steps with and without augmentation run by turns in this process, on batches that
are gathered from arrays on the device; a step waits for its input as long as it takes to have the next batch
under way. The bars: augmentation under 5 % of a step, input under 1 %.
"""

import dataclasses
import sys
import time

import jax
import numpy as np

from dl.data.pipeline import Batches
from dl.data.source import ArraySource
from dl.data.splits import ArraySplits
from dl.experiment import Experiment
from dl.sharding import make_mesh
from dl.training.program import Program
from experiments.transfer_mobilenetv2 import experiment as transfer_mobilenetv2

REPEATS = 30


class Stepper:
    """The compiled train step of an experiment, its state, and its batches."""

    def __init__(self, experiment: Experiment):
        mesh = make_mesh()
        self.batches = Batches(experiment.data.train, experiment.batch_size, mesh, seed=experiment.seed)
        program = Program(experiment, mesh, {"train": self.batches})
        self.train_step, self.state, self.step = program.compile().train, program.init(), 0

    def run(self) -> tuple[float, float]:
        """Takes one step; returns the seconds until its batch was under way, and those of all of it."""
        started = time.perf_counter()
        batch = self.batches[self.step]
        waited = time.perf_counter() - started
        self.state, metrics = self.train_step(self.state, batch)
        jax.block_until_ready((self.state, metrics))
        self.step += 1
        return waited, time.perf_counter() - started


def random_photos(size: int, count: int = 64) -> ArraySplits:
    """Returns noise in ten classes: what an image shows does not change what it costs."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, size, size, 3), np.uint8)
    return ArraySplits(
        "noise", ArraySource({"image": images, "label": np.arange(count, dtype=np.int32) % 10})
    )


def main() -> None:
    size, batch_size = (int(word) for word in (*sys.argv[1:], "224", "32")[:2])
    for stage in ("scratch", "head"):
        whole = transfer_mobilenetv2("digits", stage=stage, backbone="random", image_size=size)
        whole = dataclasses.replace(whole, data=random_photos(size), batch_size=batch_size, keep_best=None)
        steppers = [Stepper(whole), Stepper(dataclasses.replace(whole, augment=None))]
        for stepper in steppers:
            stepper.run()
        times = [[stepper.run() for stepper in steppers] for _ in range(REPEATS)]
        # The fastest of each: whatever else the machine does can only slow a step down.
        waited, augmented = (min(column) for column in zip(*(t[0] for t in times), strict=True))
        plain = min(t[1][1] for t in times)
        print(
            f"{stage} at {size}x{size}, batch {batch_size}: {augmented * 1e3:.1f} ms a step, "
            f"{plain * 1e3:.1f} ms without augmentation: {(augmented - plain) / augmented:.2%} for it; "
            f"input {waited / augmented:.3%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
