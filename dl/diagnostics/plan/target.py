"""Targets: the devices that a step is planned for, which need not be there.

A target is written `tpu:v5e:4x4` (16 chips in a torus), `tpu:v5e-16` (the same by its accelerator type),
`cuda:h100:8` (8 GPUs of one host) or `cpu:8` (8 virtual devices of this machine). The compiler of a TPU is in
the package libtpu, and that of a GPU in the plugin of JAX for CUDA; neither needs a device.
"""

import contextlib
import dataclasses
import functools
import importlib.resources
import importlib.util
import math
import os
import re
import tomllib
from collections.abc import Mapping
from typing import Any

import jax
from jax.experimental import topologies

from dl.errors import UserError

# The shape of the torus of each accelerator type, by its number of chips.
_TORUS_2D = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_TORUS_3D = {
    4: "2x2x1",
    8: "2x2x2",
    16: "2x2x4",
    32: "2x4x4",
    64: "4x4x4",
    128: "4x4x8",
    256: "4x8x8",
    512: "8x8x8",
}
EXAMPLES = "tpu:v5e:4x4, tpu:v5p:4x4x4, tpu:v6e-8, cuda:h100:8 or cpu:8"


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of device; `hardware.toml` states the units and the sources.

    Attributes:
      platform: `tpu`, `cuda` or `cpu`.
      name: its name for a reader.
      memory: usable main memory of a device, in bytes. `None` means that it is not known.
      flops: peak of matrix products in FLOP/s, by dtype of the computation; empty if it is not known.
      bandwidth: of the main memory, in bytes/s.
      link_bandwidth: of all links to other devices in one direction, in bytes/s.
      torus_axes: number of axes of the torus of devices; 0 if a switch connects all.
      target_config: what the compiler is told about a GPU that is not here.
    """

    platform: str
    name: str
    memory: int | None
    flops: Mapping[str, float] = dataclasses.field(default_factory=dict)
    bandwidth: float | None = None
    link_bandwidth: float | None = None
    torus_axes: int = 0
    target_config: str = ""

    def peak(self, dtype: str) -> float:
        """Returns the peak FLOP/s of products of a dtype; that of float32 for a dtype without a row."""
        return self.flops.get(dtype, self.flops["float32"])


@dataclasses.dataclass(frozen=True)
class Target:
    """The devices that a step is planned for.

    Attributes:
      text: as it was written.
      key: key of the chip in the tables of hardware and prices, such as `v5e`.
      chip: the kind of the devices.
      num_devices: number of devices; of TPUs, of chips.
      topology: shape of the torus of a TPU, such as `4x4`.
    """

    text: str
    key: str
    chip: Chip
    num_devices: int
    topology: str = ""

    @functools.cached_property
    def devices(self) -> list[jax.Device]:
        """The devices; they can be compiled for, and only those of a CPU can compute.

        Raises:
          UserError: the compiler of the target is not installed, or does not know the topology.
        """
        if self.chip.platform == "cpu":
            return _cpu_devices(self.num_devices)
        return _tpu_devices(self) if self.chip.platform == "tpu" else _cuda_devices(self)


def find_target(text: str) -> Target:
    """Returns the target that a text names.

    Raises:
      UserError: the text is not understood, or names hardware without a row in the table.
    """
    platform, _, rest = text.strip().lower().partition(":")
    if platform == "cpu":
        if rest and not re.fullmatch(r"[1-9]\d{0,3}", rest):
            raise _not_understood(text)
        number = int(rest or 1)
        return Target(text, "cpu", Chip("cpu", "CPU of this machine", _memory_here(number)), number)
    chips = {key: chip for key, chip in hardware().items() if chip.platform == platform}
    if not chips:
        raise _not_understood(text)
    found = re.fullmatch(r"(\w+)(?::(\d+(?:x\d+)*)|-(\d+))?", rest)
    if found is None:
        raise _not_understood(text)
    key, shape, count = found[1], found[2], found[3]
    if key not in chips:
        raise UserError(f"the target {text} is unknown hardware; choose one of {', '.join(chips)}")
    chip = chips[key]
    if platform == "cuda":
        number = int(shape or count or 1) if "x" not in (shape or "") else 0
        if not 1 <= number <= 8:
            raise UserError(
                f"the target {text} must have 1 to 8 GPUs of one host, such as {platform}:{key}:8"
            )
        return Target(text, key, chip, number)
    if shape is None:
        sizes = _TORUS_3D if chip.torus_axes == 3 else _TORUS_2D
        # The accelerator types of TPUs with two cores in a chip count cores.
        cores = 2 if chip.torus_axes == 3 else 1
        if count is None or int(count) % cores or int(count) // cores not in sizes:
            known = ", ".join(f"{key}-{cores * number}" for number in sizes)
            raise UserError(
                f"the target {text} lacks a known size; write a torus such as tpu:{key}:{sizes[4]}, "
                f"or one of {known}"
            )
        shape = sizes[int(count) // cores]
    return Target(text, key, chip, math.prod(map(int, shape.split("x"))), shape)


@functools.cache
def hardware() -> Mapping[str, Chip]:
    """Returns the table of hardware, by key."""
    table: dict[str, dict[str, Any]] = tomllib.loads(
        importlib.resources.files(__package__).joinpath("hardware.toml").read_text("utf-8")
    )
    return {key: Chip(**row) for key, row in table.items()}


def _not_understood(text: str) -> UserError:
    return UserError(f"the target {text!r} is not understood; write for example {EXAMPLES}")


def _tpu_devices(target: Target) -> list[jax.Device]:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"the target {target.text} needs the compiler of TPUs, which is not installed; pip install "
            "'.[tpu]' on any machine with Linux"
        )
    sizes = [int(size) for size in target.topology.split("x")]
    sizes += [1] * (3 - len(sizes))
    is_part_of_a_host = sizes[0] % 2 or sizes[1] % 2
    bounds = {"chips_per_host_bounds": sizes} if is_part_of_a_host else {}
    try:
        return list(
            topologies.get_topology_desc(
                platform="tpu", topology_name=f"{target.key}:{target.topology}", **bounds
            ).devices
        )
    except jax.errors.JaxRuntimeError as error:
        if "lockfile" in str(error):
            raise UserError(
                f"another process uses libtpu, so {target.text} cannot be planned now; wait for it, or set "
                "ALLOW_MULTIPLE_LIBTPU_LOAD=1 if no TPU is here"
            ) from None
        raise UserError(
            f"the compiler does not know the target {target.text} ({_brief(error)}); choose another torus"
        ) from None


def _cuda_devices(target: Target) -> list[jax.Device]:
    plugins = [f"jax_cuda{version}_plugin" for version in (12, 13, 14)]
    if not any(importlib.util.find_spec(name) for name in plugins):
        raise UserError(
            f"the target {target.text} needs the compiler of GPUs, which is not installed; pip install "
            "'.[cuda]'"
        )
    try:
        return list(
            topologies.get_topology_desc(
                platform="cuda",
                target_config=target.chip.target_config,
                topology=f"1x1x{target.num_devices}",
            ).devices
        )
    except (RuntimeError, NotImplementedError) as error:
        raise UserError(
            f"this version of JAX cannot compile for {target.text} without a GPU ({_brief(error)}); plan on "
            "a machine with the GPU, or for tpu or cpu"
        ) from None


def _cpu_devices(number: int) -> list[jax.Device]:
    with contextlib.suppress(RuntimeError):  # A backend runs already, with as many devices as it has.
        before = jax.config.jax_num_cpu_devices  # type: ignore[attr-defined]
        jax.config.update("jax_num_cpu_devices", max(number, before))
    devices = jax.devices("cpu")
    if len(devices) < number:
        raise UserError(
            f"the target cpu:{number} needs {number} virtual devices, and JAX has started with "
            f"{len(devices)}; start it with XLA_FLAGS=--xla_force_host_platform_device_count={number}"
        )
    return list(devices[:number])


def _memory_here(num_devices: int) -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // num_devices


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
