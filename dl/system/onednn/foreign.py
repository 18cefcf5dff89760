"""Calls of oneDNN's own library from compiled programs, through XLA's interface for foreign functions.

A call carries its computation as text, so that a program from the persistent compilation cache has it too.
The handler is a function of Python that C calls. It takes Python's lock three times, for some microseconds
each, or for as long as another thread keeps it; the library computes without it.

A handler of signals runs in the main thread between any two operations of Python, those of this handler too,
and must not raise an exception there. `guard_interrupts` replaces the one of Ctrl-C.

Source: `xla/ffi/api/c_api.h` of openxla/xla, whose layout is stable; jaxlib contains it.
"""

import contextlib
import ctypes
import functools
import json
import signal
import threading
from collections.abc import Sequence
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_int, c_int64, c_size_t, c_void_p
from types import FrameType
from typing import Any

import jax

from dl.system.onednn import libdnnl
from dl.system.onednn.computation import NO_WINDOW, Computation, Layout, Window
from dl.system.onednn.libdnnl import Unsupported

TARGET = "dl_onednn"
_METADATA = 1  # XLA_FFI_Extension_Metadata
_VERSION = (0, 3)  # of the interface, as it is described here
_INTERNAL = 13  # XLA_FFI_Error_Code_INTERNAL
_SOON = 0.02  # seconds


class _Version(ctypes.Structure):
    _fields_ = (("size", c_size_t), ("extension", c_void_p), ("major", c_int), ("minor", c_int))


class _Metadata(ctypes.Structure):
    _fields_ = (("size", c_size_t), ("version", _Version))


class _Extension(ctypes.Structure):
    _fields_ = (
        *(("size", c_size_t), ("kind", c_int), ("next", c_void_p)),
        ("metadata", POINTER(_Metadata)),
    )


class _Buffer(ctypes.Structure):
    _fields_ = (("size", c_size_t), ("extension", c_void_p), ("dtype", c_int), ("data", c_void_p))


class _Buffers(ctypes.Structure):
    _fields_ = (
        *(("size", c_size_t), ("extension", c_void_p), ("count", c_int64), ("kinds", c_void_p)),
        ("buffers", POINTER(POINTER(_Buffer))),
    )


class _Text(ctypes.Structure):
    _fields_ = (("start", c_void_p), ("length", c_size_t))


class _Attributes(ctypes.Structure):
    _fields_ = (
        *(("size", c_size_t), ("extension", c_void_p), ("count", c_int64), ("kinds", c_void_p)),
        *(("names", c_void_p), ("values", POINTER(POINTER(_Text)))),
    )


class _ErrorArguments(ctypes.Structure):
    _fields_ = (
        *(("size", c_size_t), ("extension", c_void_p)),
        *(("message", c_char_p), ("code", c_int)),
    )


class _Interface(ctypes.Structure):
    _fields_ = (
        *(("size", c_size_t), ("extension", c_void_p), ("version", _Version), ("internal", c_void_p)),
        ("make_error", CFUNCTYPE(c_void_p, POINTER(_ErrorArguments))),
    )


class _Call(ctypes.Structure):
    _fields_ = (
        *(("size", c_size_t), ("extension", POINTER(_Extension)), ("interface", POINTER(_Interface))),
        *(("context", c_void_p), ("stage", c_int)),
        *(("arguments", _Buffers), ("results", _Buffers), ("attributes", _Attributes)),
    )


_Handler = CFUNCTYPE(c_void_p, POINTER(_Call))


def _handle(pointer: Any) -> Any:
    """Answers a call; returns an error as XLA makes it, or `None`."""
    call = pointer.contents
    try:
        _answer(call)
    except BaseException as error:  # which must not end in C
        message = f"{type(error).__name__}: {error}".encode()
        arguments = _ErrorArguments(ctypes.sizeof(_ErrorArguments), None, message, _INTERNAL)
        return call.interface.contents.make_error(arguments)
    return None


_handler, _CODE = _Handler(_handle), _handle.__code__


def guard_interrupts() -> None:
    """Lets Ctrl-C wait for the end of a call. Handlers that somebody has set are left alone."""
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and libdnnl.path() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _on_interrupt)


def _on_interrupt(number: int, frame: FrameType | None) -> None:
    """Handles Ctrl-C as Python does, but not inside of a call: there it comes again a little later."""
    while frame is not None:
        if frame.f_code is _CODE:
            threading.Timer(_SOON, _interrupt).start()
            return
        frame = frame.f_back
    signal.default_int_handler(number, None)


def _interrupt() -> None:
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def _answer(call: _Call) -> None:
    """Computes what a call asks for."""
    if call.extension and call.extension.contents.kind == _METADATA:
        version = call.extension.contents.metadata.contents.version
        version.major, version.minor = _VERSION
        return
    text, arrays = call.attributes.values[0].contents, call.arguments.buffers
    computation_of(ctypes.string_at(text.start, text.length)).run(
        arrays[0].contents.data, arrays[1].contents.data, call.results.buffers[0].contents.data
    )


@functools.cache
def computation_of(text: bytes) -> Computation:
    """Returns the computation of a text that `text_of` returned."""
    what, *layouts, window = json.loads(text)
    inputs, kernel, outputs = (Layout(tuple(sizes), tuple(strides)) for sizes, strides in layouts)
    return Computation(what, inputs, kernel, outputs, Window(*map(tuple, window)))


@functools.cache
def text_of(
    what: str, inputs: Layout, kernel: Layout, outputs: Layout, window: Window = NO_WINDOW
) -> str | None:
    """Returns a computation as text, or `None` if the library does not have it; see `Computation`."""
    text = json.dumps([what, inputs, kernel, outputs, window], separators=(",", ":"))
    with contextlib.suppress(Unsupported):
        computation_of(text.encode())
        return text
    return None


@functools.cache
def is_available() -> bool:
    """Returns whether the library is installed; then programs may call it."""
    if libdnnl.library() is None:
        return False
    jax.ffi.register_ffi_target(TARGET, jax.ffi.pycapsule(_handler), platform="cpu")
    return True


def call(ctx: Any, arrays: Sequence[Any], text: str) -> Any:
    """Lowers a call of the library with two arrays."""
    return jax.ffi.ffi_lowering(TARGET)(ctx, *arrays, computation=text)
