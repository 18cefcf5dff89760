"""oneDNN's own library, libdnnl, which the extra `cpu` installs: its C interface and its computations.

jaxlib reaches a part of oneDNN only: there is no call for the gradient of a convolution's kernel, and
programs with its calls cannot be stored. `Computation` is one computation of the library for arrays of given
shapes. The library chooses how the kernel of a convolution lies in memory, which is several times faster for
gradients, and copies the kernel. Its threads are those of OpenMP: one for each core of this process, or
`OMP_NUM_THREADS`.

Source: `dnnl.h` and `dnnl_types.h` of oneDNN 3, https://uxlfoundation.github.io/oneDNN/.
"""

import ctypes
import functools
import importlib.metadata
import platform
import sys
import threading
from collections.abc import Sequence
from ctypes import POINTER, c_int, c_int64, c_size_t, c_void_p
from typing import Any, NamedTuple

_PACKAGE = "onednn-cpu-gomp"
_MAJOR = 3
_CPU, _FLOAT32, _ANY_LAYOUT = 1, 3, 1  # dnnl_cpu, dnnl_f32, dnnl_format_tag_any
_FORWARD, _DIRECT = 64, 1  # dnnl_forward_training, dnnl_convolution_direct
_INPUTS, _OUTPUTS, _KERNEL = 1, 17, 33  # DNNL_ARG_SRC, DNNL_ARG_DST, DNNL_ARG_WEIGHTS
_GRADIENT = 128  # what is added for the gradient of one of them
_FROM, _TO = 1, 17  # arguments of a copy
_MAX_DIMS = 12
_ALLOCATED = c_void_p(-1)  # DNNL_MEMORY_ALLOCATE
_UNKNOWN = c_void_p(0)  # DNNL_MEMORY_NONE

Dims = c_int64 * _MAX_DIMS


class Unsupported(Exception):
    """The library has no such computation."""


class Layout(NamedTuple):
    """How an array lies in memory: its sizes and strides, in elements, in oneDNN's order of axes."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...]


class Window(NamedTuple):
    """What a convolution does with its window; empty for a product of matrices."""

    strides: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    low: tuple[int, ...] = ()
    high: tuple[int, ...] = ()


NO_WINDOW = Window()


class _Argument(ctypes.Structure):
    _fields_ = (("name", c_int), ("memory", c_void_p))


_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "dnnl_engine_create": (POINTER(c_void_p), c_int, c_size_t),
    "dnnl_stream_create": (POINTER(c_void_p), c_void_p, c_int),
    "dnnl_memory_desc_create_with_strides": (POINTER(c_void_p), c_int, Dims, c_int, Dims),
    "dnnl_memory_desc_create_with_tag": (POINTER(c_void_p), c_int, Dims, c_int, c_int),
    "dnnl_memory_create": (POINTER(c_void_p), c_void_p, c_void_p, c_void_p),
    "dnnl_memory_set_data_handle": (c_void_p, c_void_p),
    "dnnl_convolution_forward_primitive_desc_create": (
        *(POINTER(c_void_p), c_void_p, c_int, c_int, c_void_p, c_void_p, c_void_p, c_void_p),
        *(Dims, Dims, Dims, Dims, c_void_p),
    ),
    "dnnl_convolution_backward_data_primitive_desc_create": (
        *(POINTER(c_void_p), c_void_p, c_int, c_void_p, c_void_p, c_void_p),
        *(Dims, Dims, Dims, Dims, c_void_p, c_void_p),
    ),
    "dnnl_convolution_backward_weights_primitive_desc_create": (
        *(POINTER(c_void_p), c_void_p, c_int, c_void_p, c_void_p, c_void_p, c_void_p),
        *(Dims, Dims, Dims, Dims, c_void_p, c_void_p),
    ),
    "dnnl_matmul_primitive_desc_create": (
        *(POINTER(c_void_p), c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p),
    ),
    "dnnl_reorder_primitive_desc_create": (
        *(POINTER(c_void_p), c_void_p, c_void_p, c_void_p, c_void_p, c_void_p),
    ),
    "dnnl_primitive_create": (POINTER(c_void_p), c_void_p),
    "dnnl_primitive_execute": (c_void_p, c_void_p, c_int, POINTER(_Argument)),
    "dnnl_stream_wait": (c_void_p,),
}
_QUERY = "dnnl_primitive_desc_query_md"  # returns a pointer, the others a status
_KERNEL_QUERY, _KERNEL_GRADIENT_QUERY = 131, 132  # dnnl_query_weights_md, dnnl_query_diff_weights_md


class _Library:
    """The loaded library with its engine."""

    def __init__(self, path: str):
        self._library = ctypes.CDLL(path)
        self._quick = ctypes.PyDLL(path)  # keeps Python's lock, for calls that are shorter than giving it up
        for name, types in _SIGNATURES.items():
            getattr(self._library, name).argtypes = types
        self._quick.dnnl_memory_set_data_handle.argtypes = _SIGNATURES["dnnl_memory_set_data_handle"]
        query = getattr(self._library, _QUERY)
        query.argtypes, query.restype = (c_void_p, c_int, c_int), c_void_p
        self.query = query
        self.execute = self._library.dnnl_primitive_execute
        self.set_data = self._quick.dnnl_memory_set_data_handle
        self.engine = self.made("dnnl_engine_create", _CPU, 0)
        self.stream = self.made("dnnl_stream_create", self.engine, 0)
        self.lock = threading.Lock()

    def made(self, name: str, *arguments: Any) -> c_void_p:
        """Calls a function that makes an object, and returns the object.

        Raises:
          Unsupported: the library cannot make it.
        """
        made = c_void_p()
        status = getattr(self._library, name)(ctypes.byref(made), *arguments)
        if status:
            raise Unsupported(f"{name} of oneDNN has the status {status}")
        return made

    def layout(self, layout: Layout) -> c_void_p:
        return self.made(
            "dnnl_memory_desc_create_with_strides",
            len(layout.sizes),
            _dims(layout.sizes),
            _FLOAT32,
            _dims(layout.strides),
        )

    def any_layout(self, sizes: Sequence[int]) -> c_void_p:
        return self.made("dnnl_memory_desc_create_with_tag", len(sizes), _dims(sizes), _FLOAT32, _ANY_LAYOUT)

    def memory(self, layout: c_void_p, data: c_void_p = _UNKNOWN) -> c_void_p:
        return self.made("dnnl_memory_create", layout, self.engine, data)

    def copy(self, start: c_void_p, end: c_void_p) -> c_void_p:
        """Returns the computation that changes a layout."""
        description = self.made(
            "dnnl_reorder_primitive_desc_create", start, self.engine, end, self.engine, None
        )
        return self.made("dnnl_primitive_create", description)


@functools.cache
def library() -> _Library | None:
    """Returns the library, or `None` if it is not installed or cannot be loaded."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return None
    try:
        installed = importlib.metadata.distribution(_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return None
    names = [file for file in installed.files or () if file.name == f"libdnnl.so.{_MAJOR}"]
    try:
        return _Library(str(installed.locate_file(names[0]))) if names else None
    except (OSError, AttributeError, Unsupported):  # such as a system without OpenMP
        return None


class Computation:
    """One computation of the library; `run` computes it for arrays at given addresses.

    Attributes:
      what: `forward` (inputs, kernel -> outputs), `input_gradient` (gradient of the outputs, kernel -> that
        of the inputs), `kernel_gradient` (inputs, gradient of the outputs -> that of the kernel), or
        `product` (of two matrices).
    """

    def __init__(
        self, what: str, inputs: Layout, kernel: Layout, outputs: Layout, window: Window = NO_WINDOW
    ):
        """Makes the computation.

        Args:
          what: see the class.
          inputs: layout of the inputs (N, I, *S), or of the first matrix.
          kernel: layout of the kernel (O, I, *K) or (G, O, I, *K), or of the second matrix.
          outputs: layout of the outputs (N, O, *T), or of the product.
          window: strides, dilation and padding of a convolution.

        Raises:
          Unsupported: the library is not installed or does not have this computation.
        """
        found = library()
        if found is None:
            raise Unsupported(f"the package {_PACKAGE} is not installed")
        self._library, self.what = found, what
        layouts = [found.layout(layout) for layout in (inputs, kernel, outputs)]
        description = self._described(what, layouts, kernel, window)
        is_gradient = what == "kernel_gradient"
        memories = [found.memory(layout) for layout in layouts]
        inside = memories[1]  # the kernel, as the library wants it in memory
        if what != "product":
            chosen = c_void_p(
                found.query(description, _KERNEL_GRADIENT_QUERY if is_gradient else _KERNEL_QUERY, 0)
            )
            inside = found.memory(chosen, _ALLOCATED)
        names = {
            "forward": (_INPUTS, _KERNEL, _OUTPUTS),
            "product": (_INPUTS, _KERNEL, _OUTPUTS),
            "input_gradient": (_INPUTS + _GRADIENT, _KERNEL, _OUTPUTS + _GRADIENT),
            "kernel_gradient": (_INPUTS, _KERNEL + _GRADIENT, _OUTPUTS + _GRADIENT),
        }[what]
        main = (
            found.made("dnnl_primitive_create", description),
            _arguments(zip(names, (memories[0], inside, memories[2]), strict=True)),
        )
        self._steps = [main]
        if is_gradient:
            self._steps.append(
                (found.copy(chosen, layouts[1]), _arguments([(_FROM, inside), (_TO, memories[1])]))
            )
        elif what != "product":
            self._steps.insert(
                0, (found.copy(layouts[1], chosen), _arguments([(_FROM, memories[1]), (_TO, inside)]))
            )
        order = {"input_gradient": (2, 1, 0), "kernel_gradient": (0, 2, 1)}.get(what, (0, 1, 2))
        self._memories = [memories[number].value for number in order]

    def _described(self, what: str, layouts: Sequence[c_void_p], kernel: Layout, window: Window) -> c_void_p:
        made, engine = self._library.made, self._library.engine
        inputs, weights, outputs = layouts
        if what == "product":
            return made("dnnl_matmul_primitive_desc_create", engine, inputs, weights, None, outputs, None)
        weights = self._library.any_layout(kernel.sizes)
        gaps = tuple(step - 1 for step in window.dilation)
        how = tuple(map(_dims, (window.strides, gaps, window.low, window.high)))
        forward = made(
            "dnnl_convolution_forward_primitive_desc_create",
            *(engine, _FORWARD, _DIRECT, inputs, weights, None, outputs),
            *(*how, None),
        )
        if what == "forward":
            return forward
        name, arrays = "backward_data", [inputs, weights, outputs]
        if what == "kernel_gradient":
            name, arrays = "backward_weights", [inputs, weights, c_void_p(), outputs]
        return made(
            f"dnnl_convolution_{name}_primitive_desc_create", engine, _DIRECT, *arrays, *how, forward, None
        )

    def run(self, first: int, second: int, result: int) -> None:
        """Computes the result; all three are addresses of arrays.

        Raises:
          Unsupported: the library failed.
        """
        found = self._library
        with found.lock:  # each computation uses all cores
            for memory, address in zip(self._memories, (first, second, result), strict=True):
                found.set_data(memory, address)
            for primitive, arguments in self._steps:
                if status := found.execute(primitive, found.stream, len(arguments), arguments):
                    raise Unsupported(f"{self.what} of oneDNN has the status {status}")


def dense(sizes: Sequence[int], order: Sequence[int]) -> Layout:
    """Returns the layout of an array without gaps.

    Args:
      sizes: its sizes in oneDNN's order of axes.
      order: the axes as they lie in memory, the one of stride 1 last.
    """
    strides = [0] * len(sizes)
    step = 1
    for axis in reversed(order):
        strides[axis] = step
        step *= sizes[axis]
    return Layout(tuple(sizes), tuple(strides))


def _dims(values: Sequence[int]) -> Any:
    return Dims(*values)


def _arguments(pairs: Any) -> Any:
    pairs = list(pairs)
    return (_Argument * len(pairs))(*(_Argument(name, memory.value) for name, memory in pairs))
