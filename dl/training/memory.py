"""Whether a state fits into memory at all, judged from its shapes before any of it exists."""

import math
import os
from collections.abc import Sequence
from typing import Any

import jax

from dl.errors import UserError


def check_fits(state: Any, devices: Sequence[jax.Device]) -> None:
    """Raises UserError if what a device holds of a state is larger than its memory.

    What passes may still be too much: activations and copies are not counted, nor is other use of the memory.

    Args:
      state: shapes and dtypes; with shardings, of which each device holds its part.
      devices: of this process. CPU devices share the memory of the machine.
    """
    needed = sum(math.prod(_shape(leaf)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    there = _memory(devices)
    if there is not None and needed > there:
        raise UserError(
            f"parameters and optimizer state take {needed / 1e9:,.4g} GB on each device, which has "
            f"{there / 1e9:,.4g} GB ({len(devices)} x {devices[0].device_kind}); make the model smaller, "
            "train fewer seeds at the same time, or split it over more devices: --mesh fsdp=N"
        )


def _shape(leaf: Any) -> tuple[int, ...]:
    sharding = getattr(leaf, "sharding", None)
    return leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)


def _memory(devices: Sequence[jax.Device]) -> int | None:
    """Returns the bytes of a device; None where it does not tell."""
    limit = (devices[0].memory_stats() or {}).get("bytes_limit")
    if limit is None and devices[0].platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(devices)
    return limit
