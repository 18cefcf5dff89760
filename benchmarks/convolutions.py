"""The three products of a convolution on this CPU: XLA's own kernels, those of `dl`, and the largest product.

    python -m benchmarks.convolutions
    python -m benchmarks.convolutions --rounds 30 --json convolutions.json

The shapes are those of the networks of `benchmarks.peers`. A cell is billions of floating-point operations in
a second: the median over rounds, in which XLA and `dl` take turns. The first line is a product of large
square matrices, the most that can be expected here. A depthwise convolution moves more memory than it
computes, so that its cells are low.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dl.cli.exit_status import run_as_command
from dl.flops import count_flops
from dl.system.allocator import keep_memory
from dl.system.onednn import native_kernels, use_onednn

SIZE = 2048  # rows and columns of the large matrices


class Shape(NamedTuple):
    """A convolution of square images with padding to the same size."""

    network: str
    batch: int
    side: int
    channels: int
    features: int
    window: int
    stride: int = 1
    groups: int = 1


SHAPES = (
    Shape("classic", 128, 28, 1, 32, 3),
    Shape("classic", 128, 13, 32, 64, 3),
    Shape("cifar10_net", 128, 32, 3, 64, 3),
    Shape("cifar10_net", 128, 16, 64, 128, 3),
    Shape("resnet18", 32, 32, 64, 64, 3),
    Shape("resnet18", 32, 16, 128, 256, 3, 2),
    Shape("resnet18", 32, 4, 512, 512, 3),
    Shape("pyramid", 128, 14, 16, 32, 3, 2),
    Shape("mobilenetv2", 16, 48, 16, 96, 1),
    Shape("mobilenetv2", 16, 6, 96, 576, 1),
    Shape("mobilenetv2", 16, 48, 96, 96, 3, 2, 96),
    Shape("mobilenetv2", 16, 24, 144, 144, 3, 1, 144),
    Shape("mobilenetv2", 16, 6, 576, 576, 3, 1, 576),
)
PRODUCTS = ("forward", "input gradient", "kernel gradient")


def products(shape: Shape) -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Returns by name a function for each product, and its arguments."""

    def convolve(inputs: Any, kernel: Any) -> Any:
        strides, numbers = (shape.stride, shape.stride), ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            inputs, kernel, strides, "SAME", dimension_numbers=numbers, feature_group_count=shape.groups
        )

    random = np.random.default_rng(0)

    def normal(*sizes: int) -> np.ndarray:
        return random.normal(size=sizes).astype(np.float32)

    inputs = normal(shape.batch, shape.side, shape.side, shape.channels)
    kernel = normal(shape.window, shape.window, shape.channels // shape.groups, shape.features)
    outputs = normal(*jax.eval_shape(convolve, inputs, kernel).shape)
    return {
        "forward": (convolve, (inputs, kernel)),
        "input gradient": (
            lambda outputs, kernel: jax.linear_transpose(lambda x: convolve(x, kernel), inputs)(outputs),
            (outputs, kernel),
        ),
        "kernel gradient": (
            lambda outputs, inputs: jax.linear_transpose(lambda k: convolve(inputs, k), kernel)(outputs),
            (outputs, inputs),
        ),
    }


def speeds(fn: Callable[..., Any], args: tuple[Any, ...], rounds: int) -> tuple[float, float]:
    """Returns billions of floating-point operations in a second of XLA and of `dl`."""

    def native(*args: Any) -> Any:
        with native_kernels():
            return fn(*args)

    args = jax.device_put(args)
    programs = [jax.jit(each).lower(*args).compile() for each in (native, lambda *args: fn(*args))]
    seconds: list[list[float]] = [[], []]
    for _ in range(rounds + 1):  # the first one warms up
        for program, taken in zip(programs, seconds, strict=True):
            started = time.perf_counter()
            jax.block_until_ready(program(*args))
            taken.append(time.perf_counter() - started)
    flops = count_flops(fn, *args)
    xla, ours = (flops / statistics.median(taken[1:]) / 1e9 for taken in seconds)
    return xla, ours


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.convolutions", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, default=15, help="Rounds. Default: 15.")
    parser.add_argument("--json", type=Path, help="File for every measurement.")
    options = parser.parse_args()
    keep_memory()
    use_onednn()
    square = jnp.ones((SIZE, SIZE))
    xla, ours = speeds(jnp.matmul, (square, square), options.rounds)
    rows: list[dict[str, Any]] = [{"network": "product of matrices", "xla": [xla], "dl": [ours]}]
    print(f"product of two {SIZE} x {SIZE} matrices: XLA {xla:.0f}, dl {ours:.0f} GFLOP/s\n")
    print("| network | batch, side | channels | window, stride | " + " | ".join(PRODUCTS) + " |")
    print("|---|---|---|---|" + "---:|" * len(PRODUCTS))
    for shape in SHAPES:
        measured = [speeds(*made, options.rounds) for made in products(shape).values()]
        rows.append(shape._asdict() | {"xla": [x for x, _ in measured], "dl": [o for _, o in measured]})
        channels = "depthwise" if shape.groups > 1 else f"to {shape.features}"
        cells = " | ".join(f"{xla:.0f} / {ours:.0f}" for xla, ours in measured)
        print(
            f"| {shape.network} | {shape.batch}, {shape.side} | {shape.channels} {channels} | "
            f"{shape.window} x {shape.window}, {shape.stride} | {cells} |",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2), encoding="utf-8")


if __name__ == "__main__":
    run_as_command(main)
