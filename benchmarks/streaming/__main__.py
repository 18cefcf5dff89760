"""Photographs read from disk: images a second beside other libraries, on the same files and cores.

    python -m benchmarks.streaming [PHOTOGRAPHS] [--rounds 5] [--num-files 2000]

The files are JPEG pictures of about 500 x 375 pixels, or copies of those in the folder PHOTOGRAPHS. Each
reader shuffles, decodes, crops the centre, resizes to 224 x 224 and makes batches of 64. Each turn is a
process of its own; its first batches are not timed. The readers take turns, and the median of each and its
ratio to `dl` in the same round are printed. The other libraries need the extra `peers`, and `dl` needs
`streaming`.
"""

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.streaming.photographs import write_folder
from benchmarks.streaming.readers import BATCH, READERS
from dl.cli.exit_status import run_as_command
from dl.ranges import POSITIVE, check

NUM_BATCHES, NUM_WARM_UP = 40, 8
_NEEDS = {
    "PyTorch DataLoader, 2 processes": "torch",
    "tf.data": "tensorflow",
    "Grain, 2 threads": "grain",
    "Grain, 2 processes": "grain",
}


def rate_of(name: str, folder: Path) -> float:
    """Returns the images a second of a reader, after its first batches."""
    batches = READERS[name](folder, NUM_BATCHES + NUM_WARM_UP)
    for _ in range(NUM_WARM_UP):
        next(batches)
    started = time.perf_counter()
    num_images = sum(len(batch) for batch in batches)
    return num_images / (time.perf_counter() - started)


def _turn(name: str, folder: Path) -> float:
    command = [sys.executable, "-m", "benchmarks.streaming", str(folder), "--reader", name]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if ended.returncode:
        raise SystemExit(f"{name} failed:\n{ended.stderr[-2000:]}")
    return json.loads(ended.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.streaming", description="Images a second.")
    parser.add_argument("photographs", type=Path, nargs="?", help="Folder of JPEG files.")
    parser.add_argument("--rounds", type=int, default=5, help="Number of turns of each reader.")
    parser.add_argument("--num-files", type=int, default=2000, help="Number of files that are read.")
    parser.add_argument(
        "--reader", choices=READERS, help="Measure one reader once, on the files of the folder."
    )
    options = parser.parse_args()
    check("rounds", options.rounds, POSITIVE)
    check("num_files", options.num_files, POSITIVE)
    if options.reader:
        print(json.dumps(rate_of(options.reader, options.photographs)))
        return
    names = [name for name in READERS if name not in _NEEDS or importlib.util.find_spec(_NEEDS[name])]
    with tempfile.TemporaryDirectory() as folder:
        num_bytes = write_folder(Path(folder) / "set", options.num_files, options.photographs)
        print(
            f"{options.num_files:,} files of {num_bytes / options.num_files / 1e3:.0f} kB, batches of {BATCH}"
        )
        rates: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(options.rounds):
            for name in names:
                rates[name].append(_turn(name, Path(folder) / "set"))
    print("| reader | images/s | dl / reader | range |\n|---|---:|---:|---|")
    for name, of_reader in rates.items():
        ratios = [ours / other for ours, other in zip(rates["dl"], of_reader, strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(
            f"| {name} | {statistics.median(of_reader):,.0f} | {statistics.median(ratios):.2f} | {spread} |"
        )


if __name__ == "__main__":
    run_as_command(main)
