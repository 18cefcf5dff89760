"""The cores of the processor that this process may use."""

import os


def num_cores() -> int:
    """Returns the number of cores, where the system tells without those that belong to other processes."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
