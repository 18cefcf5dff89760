"""What a plan states: memory by kind, the times of a step, and the plan itself."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from dl.diagnostics.plan.price import Prices
from dl.diagnostics.plan.target import Target
from dl.diagnostics.plan.traffic import Collective


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of main memory that a training takes on each device, by kind.

    Attributes:
      parameters: the trained parameters.
      optimizer: the state of the optimizer.
      other_state: batch statistics, averages, kept variables and random keys.
      batch: one batch.
      data: the training split, if it is small enough to be held on each device.
      padding: what the device's layout of parameters, states and batch adds to them.
      temporaries: activations, gradients and other arrays that exist during a step. `None` if the program
        could not be compiled.
      program: the instructions, and the metrics that a step returns.
      limit: usable memory of a device. `None` means that it is not known.
      stated: all bytes together, as the compiler states them in the error that it ends with; else `None`.
    """

    parameters: int
    optimizer: int
    other_state: int
    batch: int
    data: int
    padding: int = 0
    temporaries: int | None = None
    program: int = 0
    limit: int | None = None
    stated: int | None = None

    @property
    def state(self) -> int:
        """Bytes that are there between two steps."""
        return self.parameters + self.optimizer + self.other_state

    @property
    def peak(self) -> int:
        """All bytes during a step; a lower bound if `temporaries` is `None`."""
        known = self.state + self.batch + self.data + self.padding + self.program + (self.temporaries or 0)
        return max(known, self.stated or 0)

    @property
    def fits(self) -> bool | None:
        """Whether a device has as much. `None` means that its memory is not known."""
        return None if self.limit is None else self.stated is None and self.peak <= self.limit


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Times of a step in seconds, if each part runs at the peak rate of the hardware.

    Attributes:
      compute: matrix products and convolutions, at the peak FLOP/s of the dtype.
      memory: bytes moved, at the bandwidth of the main memory.
      collectives: exchanges between devices in rings, at the bandwidth of the links.
    """

    compute: float
    memory: float
    collectives: float

    @property
    def seconds(self) -> float:
        """Time of a step whose exchanges do not overlap with its computation."""
        return max(self.compute, self.memory) + self.collectives

    @property
    def best_seconds(self) -> float:
        """Time of a step in which all overlap."""
        return max(self.compute, self.memory, self.collectives)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a training step takes on a target.

    Attributes:
      target: the devices.
      mesh: sizes of the axes of the mesh.
      batch_size: number of examples in each update, over all devices.
      num_steps: number of updates of the run.
      num_parameters: number of trained scalars.
      memory: bytes on each device.
      flops: FLOPs of a step over all devices, with what is computed again in the backward pass.
      model_flops: three times the FLOPs of the loss, by which utilisation is measured.
      flops_per_device: FLOPs of the busiest device.
      dtype: dtype of most products.
      bytes_moved: between main memory and cores in a step, on each device; `None` if it did not compile.
      collectives: the exchanges in a step, on each device.
      roofline: the times of a step; `None` if it did not compile, or the speed of the hardware is not known.
      price_per_hour: of all devices; `None` if the table has no row.
      prices: the table of prices.
      problem: why the compiler failed; empty if it did not.
      notes: what a reader of the numbers must know.
    """

    target: Target
    mesh: Mapping[str, int]
    batch_size: int
    num_steps: int
    num_parameters: int
    memory: Memory
    flops: int
    model_flops: int
    flops_per_device: float
    dtype: str
    bytes_moved: int | None
    collectives: tuple[Collective, ...]
    roofline: Roofline | None
    price_per_hour: float | None
    prices: Prices
    problem: str = ""
    notes: tuple[str, ...] = ()

    @property
    def fits(self) -> bool | None:
        """Whether the training fits into the memory of the devices; `None` if that is not known."""
        return self.memory.fits

    @property
    def utilization(self) -> float | None:
        """Model FLOPs utilisation (MFU): model FLOPs over what the devices could do in the time of a step."""
        if self.roofline is None:
            return None
        peak = self.target.chip.peak(self.dtype) * self.target.num_devices
        return self.model_flops / (peak * self.roofline.seconds)

    @property
    def hours(self) -> float | None:
        """Time of all updates, without evaluation, compilation and interruptions."""
        return None if self.roofline is None else self.roofline.seconds * self.num_steps / 3600

    @property
    def price_of_run(self) -> float | None:
        """Price of all updates."""
        if self.hours is None or self.price_per_hour is None:
            return None
        return self.hours * self.price_per_hour

    def to_json(self) -> dict[str, Any]:
        """Returns the plan as dicts, lists and numbers."""
        target = {**dataclasses.asdict(self.target), "chip": self.target.chip.name}
        return {
            **dataclasses.asdict(dataclasses.replace(self, mesh=dict(self.mesh))),
            "target": target,
            "collectives": [{**dataclasses.asdict(c), "traffic": c.traffic} for c in self.collectives],
            "peak": self.memory.peak,
            **{name: getattr(self, name) for name in ("fits", "utilization", "hours", "price_of_run")},
            "seconds_per_step": None if self.roofline is None else self.roofline.seconds,
        }
