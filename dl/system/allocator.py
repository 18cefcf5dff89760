"""The allocator of the C library, told to keep freed memory for the next step of a training.

On a CPU, XLA allocates its large buffers at every step and frees them again. glibc gives such blocks back to
the kernel, which then has to clear new pages at the next step. Other C libraries have no such settings.

Only the heap of the main thread can hold blocks of more than 64 MiB. So programs are run by the thread that
calls them, in place of a thread of XLA.
"""

import ctypes
import os
import sys

# malloc.h. The values are signed integers of 32 bits.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4
_SETTINGS = (
    (_M_TRIM_THRESHOLD, 2**31 - 1),  # free memory at the end of the heap that is not given back
    (_M_TOP_PAD, 2**28),  # the heap grows in few steps; what is not used takes no memory
)

_state = "default"


def keep_memory() -> str:
    """Tells the allocator of this process to keep freed memory, and returns `state()`.

    To be called before anything large is allocated, and before threads start. Settings in the environment
    (`MALLOC_…`, `GLIBC_TUNABLES`) are left alone.
    """
    global _state
    _state = _keep()
    return _state


def state() -> str:
    """Returns `keeps memory`, or `default` with the reason in parentheses, if memory was to be kept."""
    return _state


def _keep() -> str:
    if sys.platform != "linux":
        return f"default ({sys.platform} has no such setting)"
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return "default (the C library is not glibc)"
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    named = [name for name in os.environ if name.startswith("MALLOC_") and name.endswith("_")]
    if named or "MALLOC_ARENA_MAX" in os.environ or "glibc.malloc" in tunables:
        return "default (the environment has settings)"
    # Smaller blocks come from the heap, which keeps what is freed. Older versions take no more than 32 MiB
    # here, so that all blocks have to come from the heap.
    from_heap = libc.mallopt(_M_MMAP_THRESHOLD, 2**30) or libc.mallopt(_M_MMAP_MAX, 0)
    if not (from_heap and all(libc.mallopt(name, value) for name, value in _SETTINGS)):
        return "default (glibc refused a setting)"
    import jax  # slow, and not needed before

    jax.config.update("jax_cpu_enable_async_dispatch", False)  # is read when the backend starts
    return "keeps memory"
