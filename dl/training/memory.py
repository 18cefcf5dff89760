"""Checks from the shapes of a state whether it fits into memory, before it is allocated."""

import math
import os
from collections.abc import Sequence
from typing import Any

import jax

from dl.errors import UserError


def check_fits(state: Any, devices: Sequence[jax.Device]) -> None:
    """Raises UserError if the part of a state that a device holds is larger than its memory.

    A state that passes may still be too large: activations, copies and other uses of the memory are not
    counted.

    Args:
      state: shapes and dtypes. With shardings, each device holds its part only.
      devices: the devices of this process. CPU devices share the memory of the machine.
    """
    needed = sum(math.prod(_shape(leaf)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    there = _memory(devices)
    if there is not None and needed > there:
        raise UserError(
            f"parameters and optimizer state take {needed / 1e9:,.4g} GB on each device, which has "
            f"{there / 1e9:,.4g} GB ({len(devices)} x {devices[0].device_kind}); make the model smaller, "
            "train fewer seeds at the same time, or shard it over more devices with --mesh fsdp=N"
        )


def _shape(leaf: Any) -> tuple[int, ...]:
    sharding = getattr(leaf, "sharding", None)
    return leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)


def _memory(devices: Sequence[jax.Device]) -> int | None:
    """Returns the memory of a device in bytes; `None` if it is not known."""
    limit = (devices[0].memory_stats() or {}).get("bytes_limit")
    if limit is None and devices[0].platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(devices)
    return limit
