"""A small network whose log shows what each step was trained on, and from which parameters it started.

    python -m benchmarks.elastic.recorded --log-every 1

The metrics of a step, so each row of metrics.jsonl, hold two things that the devices compute:

- `examples_K`: the number Σ 2^i over the examples 24 K + i of the batch, divided by the batch size, from
  which `examples_of` finds which examples the step was trained on;
- `parameters_K`: 64 bits of a checksum of the parameters before the update, which `checksum` computes with
  NumPy from parameters on the host.

The examples are read row by row, and slowly, so that a run can be disturbed between two steps.

Shapes: B examples of a batch.
"""

import time
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dl import Experiment, PositiveInt, main, optimizers, task
from dl.data import ArraySource, ArraySplits
from dl.metrics import Mean
from dl.option_types import Seed
from dl.sharding import path_name
from dl.task import Task
from dl.types import Aux, Batch, Key, Metrics, ModelState, Params

NUM_EXAMPLES = 92  # not a multiple of the batch size, so that the last batch of an epoch is padded
BATCH_SIZE = 16
SECONDS_A_READ = 0.1
_BITS = 24  # whole numbers below 2^24 are exact in float32
_FACTORS = (0x9E3779B1, 0x85EBCA6B)  # odd, so that a changed bit always changes the sum


class Network(nn.Module):
    """Convolution, batch norm, dropout, and a kernel that `fsdp` splits."""

    @nn.compact
    def __call__(self, image_BHWC: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits of four classes."""
        x_BHWC = nn.Conv(8, (3, 3))(image_BHWC)
        x_BHWC = nn.relu(nn.BatchNorm(use_running_average=not train)(x_BHWC))
        x_BF = x_BHWC.reshape(len(x_BHWC), -1)
        x_BF = nn.relu(nn.Dense(64)(nn.Dropout(0.2, deterministic=not train)(x_BF)))
        return nn.Dense(4)(x_BF)


class Rows:
    """The rows of other examples, each read of which takes `SECONDS_A_READ`."""

    checksum = "noise of seed 0"

    def __init__(self, examples: ArraySource):
        self.spec = examples.spec
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the rows of these indices."""
        time.sleep(SECONDS_A_READ)
        return self._examples[indices]


def recorded(task: Task) -> Task:
    """Returns the task with the examples and the parameters of a step among its metrics."""

    def loss(params: Params, model_state: ModelState, batch: Batch, key: Key | None) -> tuple[Mean, Aux]:
        mean, aux = task.loss(params, model_state, batch, key)
        if key is None:
            return mean, aux
        return mean, Aux(aux.model_state, {**aux.metrics, **_examples(batch), **_parameters(params)})

    return task._replace(loss=loss)


def _examples(batch: Batch) -> Metrics:
    index_B, mask_B = batch["index"], batch["mask"]
    found = {}
    for number in range(-(-NUM_EXAMPLES // _BITS)):
        place_B = index_B - number * _BITS
        is_here_B = mask_B & (place_B >= 0) & (place_B < _BITS)
        bits_B = jnp.where(is_here_B, 1 << jnp.clip(place_B, 0, _BITS - 1), 0)
        found[f"examples_{number}"] = Mean(jnp.float32(bits_B.sum()), jnp.float32(len(index_B)))
    return found


def examples_of(row: Mapping[str, Any]) -> list[int]:
    """Returns the examples that a row of the log names, in order; one that occurs twice raises ValueError."""
    found = []
    for number in range(-(-NUM_EXAMPLES // _BITS)):
        bits = row[f"examples_{number}"] * BATCH_SIZE
        if bits != int(bits) or not 0 <= bits < 2**_BITS:
            raise ValueError(f"step {row['step']}: {bits} is not a set of examples")
        found += [number * _BITS + place for place in range(_BITS) if int(bits) >> place & 1]
    return found


def _parameters(params: Params) -> Metrics:
    """Returns the checksum in parts of 16 bits, whose sum over 8 parts of a batch is exact in float32."""
    fixed = jax.lax.stop_gradient(params)
    words = _checksum(fixed, jnp, lambda leaf: jax.lax.bitcast_convert_type(leaf, jnp.uint32))
    parts = [word >> shift & 0xFFFF for word in words for shift in (0, 16)]
    return {
        f"parameters_{number}": Mean(part.astype(jnp.float32), jnp.float32(1))
        for number, part in enumerate(parts)
    }


def checksum(params: Params) -> list[int]:
    """Returns the checksum of parameters on the host, as four numbers of 16 bits."""
    words = _checksum(params, np, lambda x: np.ascontiguousarray(x).view(np.uint32))
    return [int(word) >> shift & 0xFFFF for word in words for shift in (0, 16)]


def checksum_of(row: Mapping[str, Any]) -> list[int]:
    """Returns the checksum in a row of the log: of the parameters before the update of its step."""
    return [int(row[f"parameters_{number}"]) for number in range(2 * len(_FACTORS))]


def _checksum(params: Params, xp: Any, bits_of: Any) -> list[Any]:
    """Returns Σ factor^(place + 1) bits modulo 2^32 for each factor; the sum is exact in any order."""
    named = sorted((path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params))
    sums: list[list[Any]] = [[] for _ in _FACTORS]
    start = 0
    for _, leaf in named:
        bits = bits_of(leaf)
        for of_factor, factor in zip(sums, _FACTORS, strict=True):
            weights = _powers(factor, start, leaf.size).reshape(leaf.shape)
            of_factor.append((bits * weights).sum(dtype=xp.uint32))
        start += leaf.size
    return [xp.stack(of_factor).sum(dtype=xp.uint32) for of_factor in sums]


def _powers(factor: int, start: int, count: int) -> np.ndarray:
    """Returns factor^(start + 1), …, factor^(start + count) modulo 2^32."""
    factors = np.full(count, factor, np.uint32)
    factors[:1] = pow(factor, start + 1, 2**32)
    return np.cumprod(factors, dtype=np.uint32)


def experiment(num_steps: PositiveInt = 80, seed: Seed = 0) -> Experiment:
    """Returns an experiment on noise, which is evaluated at its end only."""
    random = np.random.default_rng(0)
    image = random.normal(size=(NUM_EXAMPLES, 8, 8, 3)).astype(np.float32)
    label = random.integers(0, 4, NUM_EXAMPLES, dtype=np.int32)
    return Experiment(
        data=ArraySplits(
            "noise",
            train=Rows(ArraySource({"image": image, "label": label})),
            evaluations={"test": ArraySource({"image": image[:20], "label": label[:20]})},
        ),
        task=recorded(task.classification(Network())),
        tx=optimizers.adamw(1e-3, clip_norm=1.0),
        num_steps=num_steps,
        batch_size=BATCH_SIZE,
        eval_every=num_steps,
        seed=seed,
    )


if __name__ == "__main__":
    main(experiment)
