"""Products of float32 and of int8 on this CPU, for each layer of quantised networks and for whole networks.

    python -m benchmarks.quantized_products
    python -m benchmarks.quantized_products --batch-size 128 --rounds 40 --json products.json

A row is one layer on a batch. Its cells are milliseconds, the median over rounds in which all programs take
turns: float32 by XLA and by oneDNN; int8 by XLA, by oneDNN, and, for a convolution, as a product of patches;
last, what a quantised layer computes: float inputs rounded to int8, the product of oneDNN, and the scales. A
layer is faster in integers where the last column is below those of float32.

The second table is of whole networks with random weights, as `dl` evaluates them: images in a second with
floats and with integers. Other work on the machine changes all cells, and the ratios less.
"""

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dl import Experiment, optimizers, task
from dl.cli.exit_status import run_as_command
from dl.data import ArraySource, ArraySplits
from dl.methods.quantization import calibrate
from dl.methods.quantization.integers import to_integers
from dl.models.airbench import Airbench
from dl.models.cnn import CNN, ConvNet
from dl.models.resnet import ResNet
from dl.system.allocator import keep_memory
from dl.system.onednn import native_kernels, use_onednn

COLUMNS = ("float XLA", "float oneDNN", "int8 XLA", "int8 oneDNN", "int8 patches", "rounded and scaled")
SCALE = 0.01  # of the inputs


class Shape(NamedTuple):
    """A layer: a dense layer of `channels` inputs if its side is 0, else a convolution of square images."""

    network: str
    side: int
    channels: int
    features: int
    window: int = 1
    stride: int = 1


SHAPES = (
    Shape("classic", 28, 1, 32, 3),
    Shape("classic", 0, 21632, 128),
    Shape("classic", 0, 128, 10),
    Shape("pyramid", 14, 32, 64, 3, 2),
    Shape("pyramid", 7, 64, 64, 3),
    Shape("pyramid", 4, 128, 128, 3),
    Shape("fashion", 27, 8, 32, 3),
    Shape("fashion", 13, 32, 32, 3),
    Shape("fashion", 13, 32, 96, 3),
    Shape("fashion", 6, 96, 192, 3),
    Shape("resnet18", 32, 64, 64, 3),
    Shape("resnet18", 16, 128, 256, 3, 2),
    Shape("gpt", 0, 384, 1536),
)
NETWORKS: Mapping[str, nn.Module] = {
    "classic": CNN(channels=(32,), hidden=(128,), num_classes=10),
    "pyramid": ConvNet(num_classes=10),
    "fashion": Airbench(10, (32, 96, 192)),
    "resnet18": ResNet(10, (2, 2, 2, 2), width=16, small_images=True),
}


def native(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function with XLA's own kernels."""

    def call(*args: Any) -> Any:
        with native_kernels():
            return fn(*args)

    return call


def programs(shape: Shape, batch_size: int) -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Returns by column a function and its arguments."""
    random = np.random.default_rng(0)
    window = (shape.window, shape.window) if shape.side else ()
    sizes = (shape.side, shape.side) if shape.side else ()
    inputs = random.normal(size=(batch_size, *sizes, shape.channels)).astype(np.float32)
    kernel = random.normal(size=(*window, shape.channels, shape.features)).astype(np.float32)
    small, weights = (random.integers(-127, 128, a.shape).astype(np.int8) for a in (inputs, kernel))

    def multiply(inputs: Any, kernel: Any, dtype: Any = None) -> Any:
        if not shape.side:
            return lax.dot(inputs, kernel, preferred_element_type=dtype)
        strides, numbers = (shape.stride, shape.stride), ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            inputs, kernel, strides, "SAME", dimension_numbers=numbers, preferred_element_type=dtype
        )

    in_integers = functools.partial(multiply, dtype=jnp.int32)

    def of_patches(inputs: Any, kernel: Any) -> Any:
        low = (shape.window - 1) // 2
        padded = jnp.pad(inputs, ((0, 0), *((low, shape.window - 1 - low),) * 2, (0, 0)))
        count = -(-shape.side // shape.stride)
        span = (count - 1) * shape.stride + 1
        taps = range(shape.window)
        parts = [
            padded[:, i : i + span : shape.stride, j : j + span : shape.stride] for i in taps for j in taps
        ]
        patches = jnp.concatenate(parts, -1).reshape(batch_size * count**2, -1)
        return lax.dot(patches, kernel.reshape(-1, shape.features), preferred_element_type=jnp.int32)

    def quantized(inputs: Any, kernel: Any, scale: Any) -> Any:
        sums = in_integers(to_integers(inputs, scale, 8), kernel)
        return sums.astype(jnp.float32) * (scale * 0.5)

    made = {
        "float XLA": (native(multiply), (inputs, kernel)),
        "float oneDNN": (multiply, (inputs, kernel)),
        "int8 XLA": (native(in_integers), (small, weights)),
        "int8 oneDNN": (in_integers, (small, weights)),
        "rounded and scaled": (quantized, (inputs, weights, np.float32(SCALE))),
    }
    return made | ({"int8 patches": (of_patches, (small, weights))} if shape.side else {})


def medians(made: Mapping[str, tuple[Callable[..., Any], tuple[Any, ...]]], rounds: int) -> dict[str, float]:
    """Returns the median of the milliseconds of each program, which take turns."""
    compiled = {}
    for name, (fn, args) in made.items():
        args = jax.device_put(args)
        compiled[name] = jax.jit(lambda *args, fn=fn: fn(*args)).lower(*args).compile(), args
    taken: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(rounds + 1):  # the first one warms up
        for name, (program, args) in compiled.items():
            started = time.perf_counter()
            jax.block_until_ready(program(*args))
            taken[name].append(time.perf_counter() - started)
    return {name: 1e3 * statistics.median(times[1:]) for name, times in taken.items()}


def network_programs(
    model: nn.Module, batch_size: int
) -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Returns the predictions of a network with random weights, by `float` and `int8`."""
    side, channels = (32, 3) if isinstance(model, ResNet) else (28, 1)
    images = np.random.default_rng(0).uniform(size=(batch_size, side, side, channels)).astype(np.float32)
    source = ArraySource({"image": images, "label": np.zeros(batch_size, np.int32)})
    experiment = Experiment(
        data=ArraySplits("random", train=source, evaluations={"test": source}),
        task=task.classification(model),
        tx=optimizers.adam(1e-3),
        num_steps=1,
        batch_size=batch_size,
    )
    batch = {"image": images}
    variables = jax.jit(experiment.task.init)(jax.random.key(0), batch)
    quantization = calibrate(experiment, variables, num_examples=32)
    quantized = quantization.changed(experiment).task.predict
    assert experiment.task.predict is not None
    assert quantized is not None
    return {
        "float": (experiment.task.predict, (variables, batch)),
        "int8": (quantized, (quantization.converted(variables), batch)),
    }


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quantized_products", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--batch-size", type=int, default=32, help="Examples in a batch. Default: 32.")
    parser.add_argument("--rounds", type=int, default=25, help="Rounds. Default: 25.")
    parser.add_argument("--json", type=Path, help="File for every measurement.")
    options = parser.parse_args()
    keep_memory()
    use_onednn()
    rows: list[dict[str, Any]] = []
    print("| network | side | channels | window, stride | " + " | ".join(COLUMNS) + " |")
    print("|---|---:|---|---|" + "---:|" * len(COLUMNS))
    for shape in SHAPES:
        times = medians(programs(shape, options.batch_size), options.rounds)
        rows.append(shape._asdict() | times)
        cells = " | ".join(f"{times[name]:.2f}" if name in times else "" for name in COLUMNS)
        print(
            f"| {shape.network} | {shape.side or ''} | {shape.channels} to {shape.features} | "
            f"{shape.window}, {shape.stride} | {cells} |",
            flush=True,
        )
    print("\n| network | float, images/s | int8, images/s | ratio |\n|---|---:|---:|---:|")
    for name, model in NETWORKS.items():
        times = medians(network_programs(model, options.batch_size), options.rounds)
        rows.append({"network": name} | times)
        speeds = {kind: 1e3 * options.batch_size / taken for kind, taken in times.items()}
        ratio = times["float"] / times["int8"]
        print(f"| {name} | {speeds['float']:,.0f} | {speeds['int8']:,.0f} | {ratio:.2f} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2), encoding="utf-8")


if __name__ == "__main__":
    run_as_command(main)
