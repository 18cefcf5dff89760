"""oneDNN kernels that jaxlib contains, as custom calls.

jaxlib's wheels for x86-64 hold Intel's oneDNN library and the instructions of XLA's CPU backend that call it,
but no pass of the released compiler uses them. A custom call with the name of such an instruction and its
configuration reaches them. The encoding of the configuration is not a public interface: `is_available` admits
the versions of jaxlib in which it was tested, and everything else computes with XLA's own kernels.

Factors of 8 bits have sums of 32 bits, which are exact: `has_integer_products` names the processors on which
they are.

Source: `onednn_config.proto`, `onednn_convolution.cc` and `onednn_matmul.cc` of openxla/xla.
"""

import functools
import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
from jax.extend.core import Primitive
from jax.interpreters import mlir

_TESTED = ((0, 10), (0, 11), (0, 12))  # versions of jaxlib in which the encoding below is understood
_INTEGER_INSTRUCTIONS = {"avx512_vnni", "avx_vnni", "amx_int8"}
_CALLS_WITH_STATUS = 2  # the version of the interface of custom calls that takes a configuration as text


def is_tested_version() -> bool:
    """Returns whether the encoding of calls, and the tables of JAX that rules are read from, are known."""
    return tuple(int(part) for part in jaxlib.__version__.split(".")[:2]) in _TESTED


def is_available() -> bool:
    """Returns whether jaxlib has the kernels, and is of a version in which they were tested."""
    return is_tested_version() and sys.platform == "linux" and platform.machine() == "x86_64"


@functools.cache
def has_integer_products() -> bool:
    """Returns whether the processor adds products of 8 bits in 32 bits.

    Older processors add pairs of them in 16 bits, which can overflow.
    """
    try:
        facts = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    flags = next((line for line in facts.splitlines() if line.startswith("flags")), "")
    return not _INTEGER_INSTRUCTIONS.isdisjoint(flags.split())


def _type_of_sums(dtype: Any) -> Any:
    return jnp.int32 if dtype == jnp.int8 else dtype


convolution_p = Primitive("onednn_convolution")  # its padding is not negative


@convolution_p.def_abstract_eval
def _convolution_type(
    inputs: Any, kernel: Any, *, sizes: Sequence[int], dimension_numbers: Any, **_: Any
) -> jax.core.ShapedArray:
    return jax.core.ShapedArray(
        (inputs.shape[0], *sizes, kernel.shape[dimension_numbers.rhs_spec[0]]),
        _type_of_sums(inputs.dtype),
    )


def _convolution(
    ctx: Any,
    inputs: Any,
    kernel: Any,
    *,
    sizes: Sequence[int],
    dimension_numbers: Any,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    groups: int,
) -> Any:
    del sizes
    num_dims = len(ctx.avals_in[0].shape)
    _, kernel_spec, _ = dimension_numbers
    data = {"batch_dim": 0, "feature_dim": num_dims - 1, "spatial_dims": list(range(1, num_dims - 1))}
    config = {
        "dims": num_dims,
        "feature_groups": groups,
        "input": {"dims": num_dims, "data": data},
        "kernel": {
            "dims": num_dims,
            "filter": {
                "input_feature_dim": kernel_spec[1],
                "output_feature_dim": kernel_spec[0],
                "spatial_dims": list(kernel_spec[2:]),
            },
        },
        "output": {"dims": num_dims, "data": data},
        "window": {
            "pad_left": [low for low, _ in padding],
            "pad_right": [high for _, high in padding],
            "strides": list(strides),
            "window_dilations": list(dilation),
        },
    }
    return _call("convolution", {"onednn_conv_config": config})(ctx, inputs, kernel)


product_p = Primitive("onednn_product")  # of two matrices, each of which may be transposed


@product_p.def_abstract_eval
def _product_type(
    left: Any, right: Any, *, is_left_transposed: bool, is_right_transposed: bool
) -> jax.core.ShapedArray:
    shape = (left.shape[1 if is_left_transposed else 0], right.shape[0 if is_right_transposed else 1])
    return jax.core.ShapedArray(shape, _type_of_sums(left.dtype))


def _product(ctx: Any, left: Any, right: Any, *, is_left_transposed: bool, is_right_transposed: bool) -> Any:
    config = {"transpose_a": is_left_transposed, "transpose_b": is_right_transposed}
    return _call("matmul", {"onednn_matmul_config": config})(ctx, left, right)


mlir.register_lowering(convolution_p, _convolution, platform="cpu")
mlir.register_lowering(product_p, _product, platform="cpu")


def _call(name: str, config: dict[str, Any]) -> Any:
    target = f"__onednn${name}"
    return jax.ffi.ffi_lowering(target, backend_config=json.dumps(config), api_version=_CALLS_WITH_STATUS)
