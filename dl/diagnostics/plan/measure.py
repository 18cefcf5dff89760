"""The memory that a step takes where its devices are here, to compare with its plan."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from dl.diagnostics.plan.price import Prices, read_prices
from dl.diagnostics.plan.records import Plan
from dl.diagnostics.plan.step_plan import compile_step
from dl.diagnostics.plan.target import Target, find_target
from dl.errors import UserError
from dl.experiment import Experiment
from dl.sharding import batch_sharding

NUM_STEPS = 3


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a few steps took.

    Attributes:
      what: what was measured: the peak of the allocator of a device, or the growth of the process.
      peak: bytes on each device.
      seconds: time of a step, the median.
      predicted: bytes on each device that the plan states, without data that were not loaded.
    """

    what: str
    peak: int
    seconds: float
    predicted: int

    @property
    def error(self) -> float:
        """Relative error of the plan: 0.1 means that it states 10 % too much."""
        return self.predicted / self.peak - 1


def measure(
    experiment: Experiment, target: str | Target, mesh: str | None = None, prices: Prices | None = None
) -> tuple[Plan, Measured]:
    """Runs a few steps on the devices of this machine, and returns the plan and what the steps took.

    On a GPU or a TPU it is the peak of the allocator. On a CPU it is the growth of the resident memory of the
    process, divided by the number of virtual devices; it contains what the compiled program leaves behind.

    Raises:
      UserError: the devices of the target are not here, or the step does not fit.
    """
    target = find_target(target) if isinstance(target, str) else target
    if target.chip.platform != "cpu":
        _check_here(target)
        target.__dict__["devices"] = jax.devices()[: target.num_devices]
    planned, program, step = compile_step(experiment, target, mesh, prices or read_prices())
    if step is None or planned.fits is False:
        raise UserError(f"the step does not fit into the memory of {target.text}; nothing was measured")
    before = _resident()
    batch = {
        name: jax.device_put(jnp.zeros(leaf.shape, leaf.dtype), batch_sharding(program.mesh))
        for name, leaf in program.traced[0].batch.items()
    }
    state = jax.block_until_ready(program.init())
    times = []
    _reset_peak()
    for _ in range(NUM_STEPS):
        started = time.perf_counter()
        state, _metrics = jax.block_until_ready(step(state, batch))
        times.append(time.perf_counter() - started)
    device = target.devices[0]
    stats: dict[str, Any] = device.memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        what, peak = "peak of the allocator", int(stats["peak_bytes_in_use"])
    else:
        what, peak = "growth of the process", (_peak_resident() - before) // target.num_devices
    predicted = planned.memory.peak - planned.memory.data
    return planned, Measured(what, max(peak, 1), sorted(times)[len(times) // 2], predicted)


def _check_here(target: Target) -> None:
    devices = jax.devices()
    kind = devices[0].device_kind.lower().replace(" lite", "e")
    words = target.chip.name.lower().replace(" sxm", "")
    if words not in kind or len(devices) < target.num_devices:
        raise UserError(
            f"the target {target.text} is not here: JAX finds {len(devices)} x {devices[0].device_kind}; "
            "leave out --measure"
        )


def _status(field: str) -> int:
    """Returns a size in bytes from what Linux states about this process."""
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0


def _resident() -> int:
    return _status("VmRSS")


def _peak_resident() -> int:
    return _status("VmHWM")


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", "utf-8")
