"""The memory of training on a set that does not fit into it, and the time that steps wait for batches.

    python -m benchmarks.streaming.training [--gigabytes 5] [--num-steps 200]

Writes JPEG files of that size in total to a temporary folder, and trains a small Vision Transformer on
224 x 224 pixels, which the program reads from disk. Prints the largest resident memory of the process, the
images a second, and the part of the training time in which steps waited for their batch. Decoding takes
longer than a step of so small a network, so most of the time is spent in waiting here. For comparison, the
same network is trained on examples in memory.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.streaming.photographs import write_folder
from benchmarks.streaming.readers import BATCH, SIZE

FILE_BYTES = 120_000  # of a picture of `photographs`


def train(folder: Path, num_steps: int, max_resident_bytes: int) -> None:
    """Trains the network, and prints what it took."""
    import dl
    from dl import optimizers, task
    from dl.data import image_classification
    from dl.models.vit import ViT
    from dl.runs.console import Console

    limits = {"max_resident_bytes": max_resident_bytes, "fast_decoding": True}
    data = image_classification(str(folder), image_size=SIZE, **limits)
    experiment = dl.Experiment(
        data=data,
        task=task.classification(ViT(data.num_classes, 64, 2, 2, patch_size=32)),
        tx=optimizers.adam(1e-3),
        num_steps=num_steps,
        batch_size=BATCH,
        eval_batch_size=BATCH,
        eval_every=num_steps + 1,
    )
    record = dl.train(experiment, console=Console(is_quiet=True)).record
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds, waited = record["train_seconds"], record["input_seconds"]
    print(
        f"{num_steps * BATCH / seconds:,.0f} images/s, waited for batches {waited / seconds:.1%} of it, "
        f"peak memory {peak / 2**30:.2f} GiB",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.streaming.training", description="Memory.")
    parser.add_argument("--gigabytes", type=float, default=5.0, help="Size of the files in total.")
    parser.add_argument("--num-steps", type=int, default=200, help="Number of steps of 64 images.")
    parser.add_argument("--folder", type=Path, help="Train on the files of this folder.")
    parser.add_argument("--in-memory", action="store_true", help="Decode the files of --folder into memory.")
    options = parser.parse_args()
    if options.folder:
        train(options.folder, options.num_steps, 2**40 if options.in_memory else 0)
        return
    command = [sys.executable, "-m", "benchmarks.streaming.training", "--num-steps", str(options.num_steps)]
    with tempfile.TemporaryDirectory() as parent:
        for name, num_files, words in (
            ("from disk", int(options.gigabytes * 1e9 / FILE_BYTES), ()),
            ("in memory", 1_000, ("--in-memory",)),
        ):
            folder = Path(parent) / name.replace(" ", "-")
            size = write_folder(folder, num_files)
            print(f"{name}: {num_files:,} files, {size / 1e9:.2f} GB", flush=True)
            subprocess.run([*command, "--folder", str(folder), *words], check=True)


if __name__ == "__main__":
    main()
