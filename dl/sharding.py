"""Sharding of arrays over devices: a mesh with named axes, and rules from a path to a partition.

Models do not depend on the sharding. The axis `data` splits the batch and replicates the parameters. The axis
`fsdp` splits both. The axis `tensor` splits parameters by the rules of a model. `dl.activations` splits the
activations.
"""

import contextlib
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dl.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
REST = -1  # the size of an axis that gets all devices that the other axes leave


class Rule(NamedTuple):
    """How the leaves of a state are split whose path a regular expression matches.

    Attributes:
      pattern: regular expression that is searched in paths such as `params/Dense_0/kernel`.
      spec: partition of a leaf of at least as many axes.
      where_it_divides: whether a leaf that the mesh does not divide is split by default in place of an error.
    """

    pattern: str
    spec: PartitionSpec
    where_it_divides: bool = False


Rules = Sequence[Rule | tuple[str, PartitionSpec]]

# Splitting a leaf with fewer elements would cost more time than the memory it saves is worth.
MIN_FSDP_SIZE = 2**14


def parse_mesh(text: str) -> dict[str, int]:
    """Returns the axis sizes of a mesh written as `data=4,fsdp=2`. One of them may be `REST`."""
    sizes: dict[str, int] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\w+)\s*=\s*(-1|\d+)\s*", part)
        is_new = match is not None and match[1] in AXES and match[1] not in sizes
        if not match or not is_new or int(match[2]) == 0 or (match[2] == "-1" and REST in sizes.values()):
            raise UserError(
                f"mesh={text!r} is not understood; write axis=size with the axes {', '.join(AXES)}, "
                "each at most once, for example data=8 or data=4,fsdp=2; one size may be -1, which means "
                "the devices that the others leave"
            )
        sizes[match[1]] = int(match[2])
    return sizes


def fill_mesh(sizes: Mapping[str, int], num_devices: int) -> dict[str, int]:
    """Returns the axis sizes with `REST` replaced by the number of devices that the others leave.

    Raises:
      UserError: the other sizes do not divide the number of devices.
    """
    others = math.prod(size for size in sizes.values() if size != REST)
    if REST in sizes.values() and num_devices % others:
        text = ",".join(f"{axis}={size}" for axis, size in sizes.items())
        raise UserError(
            f"mesh {text} leaves no whole number of devices for -1: {others} does not divide the "
            f"{num_devices} devices; choose other sizes"
        )
    return {axis: num_devices // others if size == REST else size for axis, size in sizes.items()}


def make_mesh(sizes: Mapping[str, int] | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh over the first devices, by default over all devices on the axis `data`.

    Args:
      sizes: sizes of the axes, one of which may be `REST`. An axis that is left out has size 1.
      devices: the devices. `None` means those of this run.

    Raises:
      UserError: there are not enough devices, `REST` is not a whole number of them, or several processes
        would not use all devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = fill_mesh(sizes or {"data": REST}, len(devices))
    wanted = math.prod(sizes.values())
    if wanted > len(devices):
        raise UserError(
            f"mesh {format_mesh(sizes)} needs {wanted} devices, and this machine has {len(devices)} "
            f"({devices[0].platform}); choose sizes whose product is at most {len(devices)}"
        )
    if jax.process_count() > 1 and wanted != len(devices):
        raise UserError(
            f"mesh {format_mesh(sizes)} uses {wanted} of {len(devices)} devices; with several processes "
            f"it must use all: choose sizes whose product is {len(devices)}"
        )
    shape = tuple(sizes.get(axis, 1) for axis in AXES)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices[:wanted])


def platform_trouble() -> str:
    """Returns why JAX finds no devices, such as a wrong JAX_PLATFORMS; empty if it finds devices."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX raises AssertionError if a GPU is missing.
        brief = " ".join(str(error).split())[:200]
        platforms = jax.config.jax_platforms  # type: ignore[attr-defined]
        return (
            f"JAX finds no device of JAX_PLATFORMS={platforms}{f' ({brief})' if brief else ''}; unset it, or "
            "set it to a platform of this machine, such as cpu"
        )
    return ""


def format_mesh(sizes: Mapping[str, int]) -> str:
    """Returns the sizes in the format of `parse_mesh`, without axes of size 1 if there are others."""
    wide = {axis: size for axis, size in sizes.items() if size > 1} or {"data": 1}
    return ",".join(f"{axis}={size}" for axis, size in wide.items())


def num_batch_shards(mesh: Mesh) -> int:
    """Returns the number of parts that a batch is split into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: its leading axis over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def num_parts(mesh: Mesh, spec: PartitionSpec, axis: int) -> int:
    """Returns the number of parts that a partition splits an axis into."""
    names = spec[axis] if axis < len(spec) else None
    names = names if isinstance(names, tuple) else (names,) if names else ()
    return math.prod(mesh.shape[name] for name in names)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def put(tree: Any, sharding: NamedSharding) -> Any:
    """Returns host arrays placed on the devices. Every process must hold all of `tree`."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(np.shape(x), sharding, np.asarray(x).__getitem__),
        tree,
    )


def state_shardings(abstract_state: Any, mesh: Mesh, rules: Rules = ()) -> Any:
    """Returns a `NamedSharding` for each leaf of a state, in its structure.

    A rule `(regex, PartitionSpec)` applies to the leaves whose path matches the expression and whose rank
    fits the partition, on a mesh that has an axis of the partition. The first such rule is used. The
    optimizer's moments of a parameter are sharded like the parameter, because their path contains its path.
    The largest dimension that is not split yet, and that `fsdp` divides, is split over `fsdp`, unless the
    rule states `fsdp` itself or no axis at all. Small leaves are not.

    Raises:
      UserError: a rule matches no leaf, or its partition does not divide the shape of a parameter.
    """
    all_rules = [Rule(*rule) for rule in rules]
    used: set[str] = set()

    def shard(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        name = path_name(path)
        for rule in all_rules:
            if re.search(rule.pattern, name) and len(rule.spec) <= len(leaf.shape):
                used.add(rule.pattern)
                names = _names(rule.spec)
                if not names:
                    return NamedSharding(mesh, rule.spec)
                if all(mesh.shape[axis] == 1 for axis in names):
                    break
                trouble = _why_undivided(name, leaf.shape, rule.spec, mesh)
                if not trouble:
                    return NamedSharding(mesh, _with_fsdp(rule.spec, leaf.shape, mesh))
                # Some optimizers keep other shapes than that of the parameter in the same place.
                if name.startswith("params/") and not rule.where_it_divides:
                    raise UserError(trouble)
                break
        return NamedSharding(mesh, _with_fsdp(PartitionSpec(), leaf.shape, mesh))

    shardings = jax.tree_util.tree_map_with_path(shard, abstract_state)
    for rule in all_rules:
        if rule.pattern not in used:
            raise UserError(
                f"the sharding rule {(rule.pattern, rule.spec)} matches no parameter; paths look like "
                f"{path_name(jax.tree_util.tree_leaves_with_path(abstract_state)[-1][0])}"
            )
    return shardings


def unsplit_notice(shardings: Any, mesh: Mesh) -> str:
    """Returns what a person must know if nothing is split over the axis `tensor` of a mesh; else nothing.

    Args:
      shardings: those of the parameters.
      mesh: the devices.
    """
    size = mesh.shape["tensor"]
    if size == 1 or any("tensor" in _names(sharding.spec) for sharding in jax.tree.leaves(shardings)):
        return ""
    return (
        f"tensor={size} splits no parameter, because the model states no sharding_rules: {size} devices "
        "compute the same; use data or fsdp in place of tensor"
    )


def path_name(path: tuple[Any, ...]) -> str:
    """Returns a tree path as `params/Dense_0/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _names(spec: PartitionSpec) -> set[str]:
    """Returns the axes of the mesh that a partition names."""
    return {name for part in spec for name in (part if isinstance(part, tuple) else (part,)) if name}


def _with_fsdp(spec: PartitionSpec, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Returns a partition with the largest dimension that is left split over `fsdp`."""
    fsdp = mesh.shape["fsdp"]
    if fsdp == 1 or "fsdp" in _names(spec) or math.prod(shape) < MIN_FSDP_SIZE:
        return spec
    left = [dim for dim, size in enumerate(shape) if size % fsdp == 0 and num_parts(mesh, spec, dim) == 1]
    if not left:
        return spec
    largest = max(left, key=lambda dim: shape[dim])
    parts = [*spec, *[None] * (largest + 1 - len(spec))]
    parts[largest] = "fsdp"
    return PartitionSpec(*parts)


def _why_undivided(name: str, shape: tuple[int, ...], spec: PartitionSpec, mesh: Mesh) -> str:
    """Returns why a mesh cannot split a leaf by a partition; empty if it can."""
    for dim, size in enumerate(shape):
        parts = num_parts(mesh, spec, dim)
        if size % parts:
            return (
                f"the sharding rule {spec} splits {name} of shape {shape} into {parts} parts over "
                f"{spec[dim]!r}, and {parts} does not divide {size}; change the mesh, the model or the rule"
            )
    return ""


MAX_VIRTUAL_DEVICES = 64


def make_mesh_of(text: str | None) -> Mesh:
    """Returns the mesh of the option `--mesh`. On a CPU, `data=8` creates eight virtual devices."""
    sizes = parse_mesh(text) if text else None
    wanted = math.prod(size for size in (sizes or {}).values() if size != REST)
    if 1 < wanted <= MAX_VIRTUAL_DEVICES and "xla_force_host_platform_device_count" not in os.environ.get(
        "XLA_FLAGS", ""
    ):
        # JAX ignores this if there is an accelerator, and raises an error once a backend runs.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", wanted)
    return make_mesh(sizes)
