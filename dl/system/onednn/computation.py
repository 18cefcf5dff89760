"""One computation of oneDNN's own library, for arrays of given shapes: a product or a form of a convolution.

The library chooses how the kernel of a convolution lies in memory, which is several times faster for
gradients, and copies the kernel. A computation may be made in one thread and run in another. What is made
stays until the process ends.
"""

import contextlib
from collections.abc import Sequence
from ctypes import c_void_p
from typing import NamedTuple

from dl.system.onednn.libdnnl import PACKAGE, Library, Step, Unsupported, dims, library

_FORWARD, _DIRECT = 64, 1  # dnnl_forward_training, dnnl_convolution_direct
_INPUTS, _OUTPUTS, _KERNEL = 1, 17, 33  # DNNL_ARG_SRC, DNNL_ARG_DST, DNNL_ARG_WEIGHTS
_GRADIENT = 128  # what is added for the gradient of one of them
_FROM, _TO = 1, 17  # arguments of a copy
_KERNEL_QUERY, _KERNEL_GRADIENT_QUERY = 131, 132  # dnnl_query_weights_md, dnnl_query_diff_weights_md


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
_ROLES = {
    "forward": (_INPUTS, _KERNEL, _OUTPUTS),
    "product": (_INPUTS, _KERNEL, _OUTPUTS),
    "input_gradient": (_INPUTS + _GRADIENT, _KERNEL, _OUTPUTS + _GRADIENT),
    "kernel_gradient": (_INPUTS, _KERNEL + _GRADIENT, _OUTPUTS + _GRADIENT),
}
_ORDERS = {"input_gradient": (2, 1, 0), "kernel_gradient": (0, 2, 1)}  # of the addresses; the result is last


class Computation:
    """One computation of the library; `run` computes it for arrays at given addresses."""

    def __init__(
        self, what: str, inputs: Layout, kernel: Layout, outputs: Layout, window: Window = NO_WINDOW
    ):
        """Makes the computation.

        Args:
          what: `forward` (inputs, kernel -> outputs), `input_gradient` (gradient of the outputs, kernel ->
            that of the inputs), `kernel_gradient` (inputs, gradient of the outputs -> that of the kernel), or
            `product` (of two matrices).
          inputs: layout of the inputs (N, I, *S), or of the first matrix.
          kernel: layout of the kernel (O, I, *K) or (G, O, I, *K), or of the second matrix.
          outputs: layout of the outputs (N, O, *T), or of the product.
          window: strides, dilation and padding of a convolution.

        Raises:
          Unsupported: the library is not installed or does not have this computation.
        """
        found = library()
        if found is None:
            raise Unsupported(f"the package {PACKAGE} is not installed")
        self._library = found
        with contextlib.ExitStack() as descriptions:
            self._make(what, [inputs, kernel, outputs], window, descriptions)

    def _make(self, what: str, arrays: Sequence[Layout], window: Window, until: contextlib.ExitStack) -> None:
        found = self._library
        layouts = [found.layout(*array, until) for array in arrays]
        memories = [found.memory(layout) for layout in layouts]
        order = _ORDERS.get(what, (0, 1, 2))
        self._memories = [memories[number] for number in order]
        self._inside: c_void_p | None = None
        self._steps: list[Step] = []
        if what == "product":
            description = found.made(
                *("dnnl_matmul_primitive_desc_create", found.engine, layouts[0], layouts[1], None),
                *(layouts[2], found.attributes),
                until=until,
            )
            self._steps = [found.step(description, list(zip(_ROLES[what], memories, strict=True)))]
            return
        any_kernel = found.layout(arrays[1].sizes, None, until)
        description = _described(found, what, layouts[0], any_kernel, layouts[2], window, until)
        is_gradient = what == "kernel_gradient"
        chosen, num_bytes = found.layout_of(
            description, _KERNEL_GRADIENT_QUERY if is_gradient else _KERNEL_QUERY
        )
        with found.lock:
            found.kernel.reserve(num_bytes)
        self._inside = inside = found.memory(chosen)
        inner = (memories[0], inside, memories[2])
        steps = [found.step(description, list(zip(_ROLES[what], inner, strict=True)))]
        if is_gradient:
            copy = found.copy(chosen, layouts[1], until)
            steps.append(found.step(copy, [(_FROM, inside), (_TO, memories[1])]))
        else:
            copy = found.copy(layouts[1], chosen, until)
            steps.insert(0, found.step(copy, [(_FROM, memories[1]), (_TO, inside)]))
        self._steps = steps

    def run(self, first: int, second: int, result: int) -> None:
        """Computes the result; all three are addresses of arrays.

        Raises:
          Unsupported: the library failed.
        """
        found = self._library
        with found.lock:  # each computation uses all cores, and the buffers
            for memory, address in zip(self._memories, (first, second, result), strict=True):
                found.set_data(memory, address)
            if self._inside is not None:
                found.set_data(self._inside, found.kernel.address)
            for step in self._steps:
                step.run()


def _described(
    found: Library,
    what: str,
    inputs: c_void_p,
    kernel: c_void_p,
    outputs: c_void_p,
    window: Window,
    until: contextlib.ExitStack,
) -> c_void_p:
    """Returns the description of a convolution or of one of its gradients."""
    gaps = tuple(step - 1 for step in window.dilation)
    how = tuple(map(dims, (window.strides, gaps, window.low, window.high)))
    forward = found.made(
        *("dnnl_convolution_forward_primitive_desc_create", found.engine, _FORWARD, _DIRECT),
        *(inputs, kernel, None, outputs, *how, found.attributes),
        until=until,
    )
    if what == "forward":
        return forward
    name, arrays = "backward_data", [inputs, kernel, outputs]
    if what == "kernel_gradient":
        name, arrays = "backward_weights", [inputs, kernel, c_void_p(), outputs]
    return found.made(
        *(f"dnnl_convolution_{name}_primitive_desc_create", found.engine, _DIRECT, *arrays, *how),
        *(forward, found.attributes),
        until=until,
    )


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
