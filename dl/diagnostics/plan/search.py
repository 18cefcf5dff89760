"""What to change where a step does not fit, and the largest batch and model that do; each is compiled."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from dl.diagnostics.plan.price import Prices
from dl.diagnostics.plan.records import Plan
from dl.diagnostics.plan.step_plan import mesh_on, plan
from dl.diagnostics.plan.target import Target, find_target
from dl.errors import UserError
from dl.experiment import Experiment
from dl.sharding import format_mesh, num_batch_shards

LARGEST_FACTOR = 16  # batches beyond this multiple of the experiment's are not tried
MAX_TRIES = 4


class LargestBatch(NamedTuple):
    """The largest batch that fits.

    Attributes:
      plan: its plan.
      predicted: its bytes on each device, as a line through two smaller batches predicts them.
    """

    plan: Plan
    predicted: float


class Change(NamedTuple):
    """A change with which a step fits.

    Attributes:
      text: the change, as options of the experiment.
      plan: the plan of the changed step.
    """

    text: str
    plan: Plan


def largest_batch(
    experiment: Experiment, target: str | Target, mesh: str | None = None, prices: Prices | None = None
) -> LargestBatch | None:
    """Returns the largest batch that fits, a multiple of the smallest possible one; `None` if none does.

    Memory is nearly a linear function of the batch size, so two compilations predict the largest batch, and a
    third confirms it. Batches of more than 16 times the experiment's are not tried.

    Args:
      experiment: the experiment.
      target: the devices.
      mesh: axis sizes. `None` means `data` with all devices.
      prices: a table of prices.
    """
    target = find_target(target) if isinstance(target, str) else target
    small = _smallest(experiment, target, mesh, prices)
    if small is None or not small.fits:
        return None
    unit, limit = small.batch_size, small.memory.limit
    assert limit is not None
    most = max(LARGEST_FACTOR * experiment.batch_size // unit, 2) * unit
    double = _with_batch(experiment, 2 * unit, target, mesh, prices)
    if not double.fits:
        return LargestBatch(small, small.memory.peak)
    slope = max((double.memory.peak - small.memory.peak) / unit, 1e-9)
    count = min(math.floor((limit - small.memory.peak) / slope / unit) + 1, most // unit)
    for _ in range(MAX_TRIES):
        if count <= 2:
            break
        found = _with_batch(experiment, count * unit, target, mesh, prices)
        if found.fits:
            return LargestBatch(found, small.memory.peak + slope * unit * (count - 1))
        count = min(count - 1, math.floor(count * 0.93))
    return LargestBatch(double, double.memory.peak)


def largest_size(
    build: Callable[[str], Experiment],
    sizes: Sequence[str],
    target: Target,
    mesh: str | None = None,
    prices: Prices | None = None,
) -> Change | None:
    """Returns the largest model of a ladder whose step fits; `None` if none does.

    Args:
      build: returns the experiment of a size.
      sizes: the sizes from small to large.
      target: the devices.
      mesh: axis sizes.
      prices: a table of prices.
    """
    for size in reversed(sizes):
        found = plan(build(size), target, mesh, prices)
        if found.fits:
            return Change(f"--size {size}", found)
    return None


def changes(
    experiment: Experiment, target: Target, mesh: str | None = None, prices: Prices | None = None
) -> Iterator[Change]:
    """Yields changes with which the step of an experiment fits: another mesh, then a smaller batch."""
    whole = f"fsdp={target.num_devices}"
    own = mesh or f"data={target.num_devices}"
    meshes = [own]
    if target.num_devices > 1 and format_mesh(mesh_on(target, own).shape) != whole:
        meshes.append(whole)
        if experiment.batch_size % target.num_devices == 0:
            found = plan(experiment, target, whole, prices)
            if found.fits:
                yield Change(f"--mesh {whole}", found)
                return
    for each in meshes:
        largest = largest_batch(experiment, target, each, prices)
        if largest is not None:
            with_mesh = f" --mesh {each}" if each != own else ""
            yield Change(f"--batch-size {largest.plan.batch_size}{with_mesh}", largest.plan)


def _with_batch(
    experiment: Experiment, size: int, target: Target, mesh: str | None, prices: Prices | None
) -> Plan:
    return plan(dataclasses.replace(experiment, batch_size=size), target, mesh, prices)


def _smallest(experiment: Experiment, target: Target, mesh: str | None, prices: Prices | None) -> Plan | None:
    """Returns the plan of the smallest batch that divides over the devices and the micro-batches."""
    shards = num_batch_shards(mesh_on(target, mesh))
    whole = math.lcm(experiment.batch_size, shards)
    sizes = [size for size in range(shards, whole + 1, shards) if whole % size == 0]
    for size in sizes:
        try:
            return _with_batch(experiment, size, target, mesh, prices)
        except (ValueError, UserError):  # the micro-batches do not divide it
            continue
    return None
