"""Training on one accelerator in bfloat16: beside PyTorch, and against the ceiling of matrix products.

    python -m benchmarks.accelerator [--tiny] [--seconds 20]

Prints, in at most eight minutes: the ceiling, which is the fastest product of two large matrices; ResNet-18
on 32 x 32 and ViT-S on 224 x 224 images in `dl` and in PyTorch (compiled, channels-last, autocast), where it
is installed; GPT-2 with 124 million parameters; and the full Airbench network, with the time of its eight
epochs of 50,000 images. MFU is the share of the ceiling: model FLOPs, without what is computed again. The
data are random numbers. `--tiny` tests the script itself in a few minutes on a CPU.
"""

import argparse
import importlib.util
import json
import subprocess
import sys

import jax

from benchmarks.accelerator.ours import ceiling, measure
from benchmarks.accelerator.sizes import FULL, TINY

_MAX_SECONDS = 120  # of one network in PyTorch, with its compilation


def _with_torch(name: str, is_tiny: bool, seconds: float) -> float | None:
    """Returns the examples a second of PyTorch, in a process of its own; `None` if it is not installed."""
    if importlib.util.find_spec("torch") is None:
        return None
    words = ["--peer", name, "--seconds", str(seconds), *(["--tiny"] if is_tiny else [])]
    command = [sys.executable, "-m", "benchmarks.accelerator", *words]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=_MAX_SECONDS)
    except subprocess.TimeoutExpired:
        print(f"  PyTorch took more than {_MAX_SECONDS} s")
        return None
    if ended.returncode:
        print(f"  PyTorch failed: {(ended.stderr.splitlines() or ['no message'])[-1]}")
        return None
    return float(json.loads(ended.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accelerator", description="One accelerator.")
    parser.add_argument("--tiny", action="store_true", help="Tiny networks, to test the script on a CPU.")
    parser.add_argument("--seconds", type=float, default=20.0, help="Time of each measurement.")
    parser.add_argument("--peer", choices=("resnet18", "vit_s"), help="Measure PyTorch on one network.")
    options = parser.parse_args()
    sizes = TINY if options.tiny else FULL
    if options.peer:
        from benchmarks.accelerator.with_torch import measure as measure_torch

        print(json.dumps(measure_torch(options.peer, sizes[options.peer], options.seconds)))
        return
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, bfloat16", flush=True)
    peers = {  # first, because JAX takes most of the memory of a GPU
        name: _with_torch(name, options.tiny, options.seconds) for name in ("resnet18", "vit_s")
    }
    top = ceiling(256 if options.tiny else 8192, min(5.0, options.seconds))
    print(f"ceiling: {top / 1e12:.3g} TFLOP/s", flush=True)
    columns = ("network", "batch", "dl, 1/s", "PyTorch, 1/s", "dl / PyTorch", "MFU", "compiled in", "memory")
    print(f"| {' | '.join(columns)} |\n|---{'|---:' * (len(columns) - 1)}|")
    rates = {}
    for name, size in sizes.items():
        ours = measure(name, size, options.seconds)
        rates[name], other = ours.rate, peers.get(name)
        of_peer = f"{other:,.0f} | {ours.rate / other:.2f}" if other else "- | -"
        used = f"{ours.rate * ours.flops / top:.1%}"
        costs = f"{ours.compile_seconds:.0f} s | {ours.peak_bytes / 2**30:.1f} GiB"
        print(f"| {name} | {size.batch_size} | {ours.rate:,.0f} | {of_peer} | {used} | {costs} |", flush=True)
    print(f"airbench: eight epochs of 50,000 images take {8 * 50_000 / rates['airbench']:.1f} s")


if __name__ == "__main__":
    main()
