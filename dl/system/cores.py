"""The cores of the processor that this process may use."""

import os


def num_cores() -> int:
    """Returns their number; on systems other than Linux that of all cores."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
