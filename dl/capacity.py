"""Whether a state fits into memory at all, judged from its shapes before any of it exists."""

import math
import os
from collections.abc import Sequence
from typing import Any

import jax

from dl.errors import UserError


def check_fits(state: Any, devices: Sequence[jax.Device]) -> None:
    """Raises UserError if a state is larger than the memory of all devices together.

    What passes may still be too much: activations and copies are not counted, nor is other use of the memory.

    Args:
      state: arrays, or their shapes and dtypes.
      devices: that hold it, each a part if they share it. CPU devices have the memory of the machine.
    """
    needed = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    there = _memory(devices)
    if there is not None and needed > there:
        raise UserError(
            f"parameters and optimizer state take {needed / 1e9:,.4g} GB, and {len(devices)} x "
            f"{devices[0].device_kind} {'has' if len(devices) == 1 else 'have'} {there / 1e9:,.4g} GB; make "
            "the model smaller, or train fewer seeds at the same time"
        )


def _memory(devices: Sequence[jax.Device]) -> int | None:
    """Returns the bytes of all devices together; None where they do not tell."""
    if devices[0].platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in devices]
    known = [limit for limit in limits if limit is not None]
    return sum(known) if len(known) == len(limits) else None
