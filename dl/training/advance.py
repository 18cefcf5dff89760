"""How training advances: by one step in each call of a compiled program, or by several.

A call costs the host 0.1 to 0.3 ms, which is as much as a step of a small network. So several steps are fused
into one call where the examples are on the device: the program gathers each batch itself and loops over its
steps. The number of steps is an argument of the program, so every step is computed by the same instructions.
The bits of a run therefore do not depend on how its steps are divided into calls.

Shapes: S steps of a call, B examples.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun
from jax.sharding import Mesh

from dl.data.pipeline import Batches
from dl.metrics import MetricTable
from dl.sharding import replicated
from dl.training.progress import Stopwatch
from dl.training.state import TrainState
from dl.training.step import TrainStep
from dl.types import Batch

MAX_STEPS = 64  # of one call; the rows of so many steps are sent to the device at once
CALL_SECONDS = 0.05  # a signal waits for the calls that have started

Number = jax.Array | np.int32
FusedFunction = Callable[[TrainState, Batch, Batch, Number, Number], tuple[TrainState, MetricTable]]


def fuse(traced: jax.stages.Traced, batches: Batches) -> FusedFunction:
    """Returns several steps as one function `(state, examples, rows, first, count) -> (state, metrics)`.

    Args:
      traced: the step `(state, batch) -> (state, metrics)`, which is not traced again.
      batches: the batches, whose examples are on the device.

    Returns:
      The function. `examples` are all examples, and `rows` the example indices and masks of `MAX_STEPS`
      steps, of which the function computes the steps first, …, first + count - 1. Row k of its metrics is
      that of step first + k.
    """
    train_step, structure = jaxpr_as_fun(traced.jaxpr), jax.tree.structure(traced.out_info)
    table: MetricTable = traced.out_info[1]

    def one(state: TrainState, examples: Batch, rows: Batch, s: jax.Array) -> tuple[TrainState, MetricTable]:
        of_step = {name: jax.lax.dynamic_index_in_dim(leaf, s, keepdims=False) for name, leaf in rows.items()}
        batch = batches.gather(examples, of_step)
        return jax.tree.unflatten(structure, train_step(*jax.tree.leaves((state, batch))))

    def train_steps(
        state: TrainState, examples: Batch, rows: Batch, first: Number, count: Number
    ) -> tuple[TrainState, MetricTable]:
        def body(k: jax.Array, carry: tuple[TrainState, jax.Array]) -> tuple[TrainState, jax.Array]:
            state, metrics = one(carry[0], examples, rows, first + k)
            return state, jax.lax.dynamic_update_index_in_dim(carry[1], metrics.sums, k, 0)

        sums = jnp.zeros((MAX_STEPS, *table.sums.shape), table.sums.dtype)
        state, sums = jax.lax.fori_loop(0, count, body, (state, sums))
        return state, MetricTable(table.names, table.better, sums)

    return train_steps


def lower_fused(
    traced: jax.stages.Traced, state: TrainState, batches: Batches, mesh: Mesh
) -> jax.stages.Lowered | None:
    """Lowers several steps as one function, see `fuse`; returns `None` where each call takes one step.

    That is so on several devices, where examples are read from the host, where batches differ in length, and
    with a convolution of XLA on a CPU, which uses one thread inside a loop and is up to 20 times slower.

    Args:
      traced: one step.
      state: shapes, dtypes and shardings of the state. The state is donated.
      batches: the batches of the training split.
      mesh: the devices.
    """
    if mesh.size > 1 or batches.examples is None or batches.buckets is not None:
        return None
    one, everywhere = batches.abstract, replicated(mesh)
    rows = {
        name: jax.ShapeDtypeStruct((MAX_STEPS, *one[name].shape), one[name].dtype, sharding=everywhere)
        for name in ("index", "mask")
    }
    number = jax.ShapeDtypeStruct((), np.int32, sharding=everywhere)
    lowered = jax.jit(
        fuse(traced, batches),
        out_shardings=(jax.tree.map(lambda leaf: leaf.sharding, state), everywhere),
        donate_argnums=0,
    ).lower(state, batches.examples, rows, number, number)
    if mesh.devices.flat[0].platform == "cpu" and _has_convolution(lowered):
        return None
    return lowered


def _has_convolution(lowered: jax.stages.Lowered) -> bool:
    """Returns whether a program holds a convolution that no other library computes."""
    module: Any = lowered.compiler_ir("stablehlo")
    return "stablehlo.convolution" in module.operation.get_asm(large_elements_limit=16)


class Call(NamedTuple):
    """A call that has started.

    Attributes:
      steps: the numbers of its steps; the first step of a run is 1.
      metrics: the metrics, still on the device.
      is_fused: whether the metrics have an axis of steps.
    """

    steps: range
    metrics: MetricTable
    is_fused: bool

    def fetch(self) -> Iterator[tuple[int, MetricTable]]:
        """Waits for the call, and yields the number and the metrics of each of its steps."""
        metrics = jax.device_get(self.metrics)
        for k, step in enumerate(self.steps):
            if self.is_fused:
                yield step, MetricTable(metrics.names, metrics.better, metrics.sums[k])
            else:
                yield step, metrics


class SingleSteps:
    """Calls of one step each, on batches that may be read from the host."""

    max_in_flight = 4

    def __init__(self, train_step: TrainStep, batches: Iterator[Batch], waiting: Stopwatch):
        """Takes what the steps need.

        Args:
          train_step: the compiled step.
          batches: the batches of the steps.
          waiting: measures the time in which a step waits for its batch.
        """
        self._train_step = train_step
        self._iterator = batches
        self._waiting = waiting

    def advance(self, state: TrainState, step: int, stop: int) -> tuple[TrainState, Call]:
        """Starts a call after a step, which ends at `stop` at the latest."""
        with self._waiting.running():
            batch = next(self._iterator)
        state, metrics = self._train_step(state, batch)
        return state, Call(range(step + 1, step + 2), metrics, is_fused=False)

    def ended(self) -> None:
        """Notes that the first call in flight has ended."""


class _InFlight(NamedTuple):
    """A call: the number of its steps, when it started, and when it ended if that is known."""

    num_steps: int
    started: float
    ended: float | None


class FusedSteps:
    """Calls of as many steps as take `CALL_SECONDS`, on examples that are on the device."""

    max_in_flight = 2

    def __init__(self, steps: FusedFunction, batches: Batches, waiting: Stopwatch):
        """Takes what the steps need.

        Args:
          steps: the compiled function that `fuse` returned.
          batches: the batches of the training split.
          waiting: measures the time in which a call waits for the indices of its examples.
        """
        self._steps = steps
        self._batches = batches
        self._waiting = waiting
        self._pool = ThreadPoolExecutor(1, "rows")  # on a CPU this thread may be the one that computes
        self._rows: Batch = {}
        self._sent = range(0)  # the steps that `rows` are of
        self._in_flight: deque[_InFlight] = deque()
        self._count = 1
        self._last_end: float | None = None

    def advance(self, state: TrainState, step: int, stop: int) -> tuple[TrainState, Call]:
        """Starts a call after a step, which ends at `stop` at the latest."""
        if step not in self._sent:
            with self._waiting.running():
                self._sent, self._rows = self._made(step)
        count = min(self._count, stop - step, self._sent.stop - step)
        first, examples = np.int32(step - self._sent.start), self._batches.examples
        assert examples is not None
        started = time.monotonic()
        is_last = step + count == self._sent.stop
        following = self._pool.submit(self._made, self._sent.stop) if is_last else None
        state, metrics = self._steps(state, examples, self._rows, first, np.int32(count))
        # Where the caller computes, the call has ended.
        is_done = metrics.sums.is_ready()  # type: ignore[attr-defined]
        ended = time.monotonic() if is_done else None
        self._in_flight.append(_InFlight(count, started, ended))
        if following is not None:
            self._sent, self._rows = following.result()
        return state, Call(range(step + 1, step + 1 + count), metrics, is_fused=True)

    def _made(self, first: int) -> tuple[range, Batch]:
        steps = range(first, first + MAX_STEPS)
        return steps, self._batches.rows_of(steps)

    def ended(self) -> None:
        """Notes that the first call in flight has ended. The size of the next calls follows from its time."""
        count, started, ended = self._in_flight.popleft()
        now = time.monotonic() if ended is None else ended
        if self._last_end is not None:
            # A call waits for the one before. After an evaluation there is none, and its time does not count.
            per_step = max(now - max(started, self._last_end), 1e-6) / count
            # It grows slowly, because the first steps of a process are not typical.
            self._count = max(1, min(self._count + 1, int(CALL_SECONDS / per_step), MAX_STEPS))
        self._last_end = now
