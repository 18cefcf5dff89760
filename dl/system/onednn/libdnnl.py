"""oneDNN's own library, libdnnl, which the extra `cpu` installs: its C interface.

jaxlib reaches a part of oneDNN only: there is no call for the gradient of a convolution's kernel, and
programs with its calls cannot be stored. The threads of the library are those of OpenMP: one for each core of
this process, or `OMP_NUM_THREADS`.

Source: `dnnl.h` and `dnnl_types.h` of oneDNN 3, https://uxlfoundation.github.io/oneDNN/.
"""

import contextlib
import ctypes
import functools
import importlib.metadata
import platform
import sys
import threading
from collections.abc import Sequence
from ctypes import POINTER, c_int, c_int64, c_size_t, c_void_p
from typing import Any

import numpy as np

PACKAGE = "onednn-cpu-gomp"
_MAJOR = 3
_CPU, _FLOAT32, _ANY_LAYOUT = 1, 3, 1  # dnnl_cpu, dnnl_f32, dnnl_format_tag_any
_USER = 1  # dnnl_scratchpad_mode_user
_SCRATCHPAD = 80  # DNNL_ARG_SCRATCHPAD
_SCRATCHPAD_QUERY = 136  # dnnl_query_scratchpad_md
_MAX_DIMS = 12
_ALIGNMENT = 64  # bytes
_QUERY, _SIZE = "dnnl_primitive_desc_query_md", "dnnl_memory_desc_get_size"  # return no status

Dims = c_int64 * _MAX_DIMS


class Unsupported(Exception):
    """The library has no such computation."""


class Argument(ctypes.Structure):
    """An array that a computation reads or writes, by the number of its role."""

    _fields_ = (("name", c_int), ("memory", c_void_p))


_MADE = POINTER(c_void_p)
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "dnnl_engine_create": (_MADE, c_int, c_size_t),
    "dnnl_stream_create": (_MADE, c_void_p, c_int),
    "dnnl_primitive_attr_create": (_MADE,),
    "dnnl_primitive_attr_set_scratchpad_mode": (c_void_p, c_int),
    "dnnl_memory_desc_create_with_strides": (_MADE, c_int, Dims, c_int, Dims),
    "dnnl_memory_desc_create_with_tag": (_MADE, c_int, Dims, c_int, c_int),
    "dnnl_memory_desc_destroy": (c_void_p,),
    "dnnl_memory_create": (_MADE, c_void_p, c_void_p, c_void_p),
    "dnnl_memory_set_data_handle": (c_void_p, c_void_p),
    "dnnl_convolution_forward_primitive_desc_create": (
        *(_MADE, c_void_p, c_int, c_int, c_void_p, c_void_p, c_void_p, c_void_p),
        *(Dims, Dims, Dims, Dims, c_void_p),
    ),
    "dnnl_convolution_backward_data_primitive_desc_create": (
        *(_MADE, c_void_p, c_int, c_void_p, c_void_p, c_void_p),
        *(Dims, Dims, Dims, Dims, c_void_p, c_void_p),
    ),
    "dnnl_convolution_backward_weights_primitive_desc_create": (
        *(_MADE, c_void_p, c_int, c_void_p, c_void_p, c_void_p, c_void_p),
        *(Dims, Dims, Dims, Dims, c_void_p, c_void_p),
    ),
    "dnnl_matmul_primitive_desc_create": (_MADE, *(c_void_p,) * 6),
    "dnnl_reorder_primitive_desc_create": (_MADE, *(c_void_p,) * 5),
    "dnnl_primitive_desc_destroy": (c_void_p,),
    "dnnl_primitive_create": (_MADE, c_void_p),
    "dnnl_primitive_execute": (c_void_p, c_void_p, c_int, POINTER(Argument)),
    _QUERY: (c_void_p, c_int, c_int),
    _SIZE: (c_void_p,),
}


class Buffer:
    """Memory that computations share, because one of them runs at a time. It grows when one is made."""

    def __init__(self) -> None:
        self._array = np.empty(0, np.uint8)
        self.address = 0

    def reserve(self, num_bytes: int) -> None:
        """Makes the buffer at least so large. Nothing may run meanwhile."""
        if num_bytes + _ALIGNMENT > self._array.size:
            self._array = np.empty(num_bytes + _ALIGNMENT, np.uint8)
            self.address = -(-self._array.ctypes.data // _ALIGNMENT) * _ALIGNMENT


class Library:
    """The loaded library with its engine.

    Attributes:
      lock: is held by what runs.
      scratchpad: what a computation needs besides its arrays.
      kernel: the kernel of a convolution, as the library wants it in memory.
    """

    def __init__(self, path: str):
        self._library = ctypes.CDLL(path)
        for name, types in _SIGNATURES.items():
            getattr(self._library, name).argtypes = types
        getattr(self._library, _QUERY).restype = c_void_p
        getattr(self._library, _SIZE).restype = c_size_t
        quick = ctypes.PyDLL(path)  # keeps Python's lock, for calls that are shorter than giving it up
        self.set_data = quick.dnnl_memory_set_data_handle
        self.set_data.argtypes = _SIGNATURES["dnnl_memory_set_data_handle"]
        self._execute = self._library.dnnl_primitive_execute
        self.engine = self.made("dnnl_engine_create", _CPU, 0)
        self._stream = self.made("dnnl_stream_create", self.engine, 0)
        # A scratchpad of the library belongs to the thread that makes a computation, and others run it.
        self.attributes = self.made("dnnl_primitive_attr_create")
        self._library.dnnl_primitive_attr_set_scratchpad_mode(self.attributes, _USER)
        self.lock, self.scratchpad, self.kernel = threading.Lock(), Buffer(), Buffer()

    def made(self, name: str, *arguments: Any, until: contextlib.ExitStack | None = None) -> c_void_p:
        """Calls a function that makes an object, and returns the object.

        Args:
          name: name of the function.
          arguments: its arguments after the place of the object.
          until: destroys the object, if it is a description.

        Raises:
          Unsupported: the library cannot make it.
        """
        made = c_void_p()
        status = getattr(self._library, name)(ctypes.byref(made), *arguments)
        if status:
            raise Unsupported(f"{name} of oneDNN has the status {status}")
        if until is not None:
            kind = "primitive_desc" if "primitive" in name else "memory_desc"
            until.callback(getattr(self._library, f"dnnl_{kind}_destroy"), made)
        return made

    def layout(
        self, sizes: Sequence[int], strides: Sequence[int] | None, until: contextlib.ExitStack
    ) -> c_void_p:
        """Returns the description of an array. Without strides the library chooses its layout."""
        if strides is None:
            name, layout = "dnnl_memory_desc_create_with_tag", _ANY_LAYOUT
        else:
            name, layout = "dnnl_memory_desc_create_with_strides", dims(strides)
        return self.made(name, len(sizes), dims(sizes), _FLOAT32, layout, until=until)

    def memory(self, layout: c_void_p) -> c_void_p:
        """Returns an array whose address is set later."""
        return self.made("dnnl_memory_create", layout, self.engine, None)

    def layout_of(self, description: c_void_p, query: int) -> tuple[c_void_p, int]:
        """Returns the layout of an array of a described computation, and its bytes."""
        layout = c_void_p(getattr(self._library, _QUERY)(description, query, 0))
        return layout, getattr(self._library, _SIZE)(layout)

    def step(self, description: c_void_p, arguments: Sequence[tuple[int, c_void_p]]) -> "Step":
        """Returns a described computation of some arrays."""
        layout, num_bytes = self.layout_of(description, _SCRATCHPAD_QUERY)
        scratchpad = self.memory(layout) if num_bytes else None
        with self.lock:
            self.scratchpad.reserve(num_bytes)
        pairs = [*arguments, *([(_SCRATCHPAD, scratchpad)] if scratchpad else [])]
        made = (Argument * len(pairs))(*(Argument(name, memory.value) for name, memory in pairs))
        return Step(self, self.made("dnnl_primitive_create", description), made, scratchpad)

    def copy(self, start: c_void_p, end: c_void_p, until: contextlib.ExitStack) -> c_void_p:
        """Returns the description of the computation that changes a layout."""
        return self.made(
            *("dnnl_reorder_primitive_desc_create", start, self.engine, end, self.engine, self.attributes),
            until=until,
        )

    def run(self, primitive: c_void_p, arguments: Any) -> None:
        """Computes what a step is for.

        Raises:
          Unsupported: the library failed.
        """
        if status := self._execute(primitive, self._stream, len(arguments), arguments):
            raise Unsupported(f"a computation of oneDNN has the status {status}")


class Step:
    """A computation whose arrays have addresses."""

    def __init__(self, library: Library, primitive: c_void_p, arguments: Any, scratchpad: c_void_p | None):
        self._library, self._primitive, self._arguments = library, primitive, arguments
        self._scratchpad = scratchpad

    def run(self) -> None:
        """Computes it. The lock of the library is held."""
        if self._scratchpad is not None:
            self._library.set_data(self._scratchpad, self._library.scratchpad.address)
        self._library.run(self._primitive, self._arguments)


def dims(values: Sequence[int]) -> Any:
    """Returns numbers as an array of C."""
    return Dims(*values)


def path() -> str | None:
    """Returns the path of the library, or `None` if it is not installed."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return None
    try:
        installed = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return None
    names = [file for file in installed.files or () if file.name == f"libdnnl.so.{_MAJOR}"]
    return str(installed.locate_file(names[0])) if names else None


@functools.cache
def library() -> Library | None:
    """Returns the library, or `None` if it is not installed or cannot be loaded."""
    found = path()
    try:
        return Library(found) if found else None
    except (OSError, AttributeError, Unsupported):  # such as a system without OpenMP
        return None
