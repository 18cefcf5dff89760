"""Sharding of arrays over devices: a mesh with named axes, and rules from a path to a partition.

Models do not depend on the sharding. The axis `data` splits the batch and replicates the parameters. The axis
`fsdp` splits both. The axis `tensor` splits parameters by the rules of an experiment.
"""

import contextlib
import contextvars
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dl.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
Rules = Sequence[tuple[str, PartitionSpec]]

# Splitting a leaf with fewer elements would cost more time than the memory it saves is worth.
MIN_FSDP_SIZE = 2**14


def parse_mesh(text: str) -> dict[str, int]:
    """Returns the axis sizes of a mesh written as `data=4,fsdp=2`."""
    sizes: dict[str, int] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\w+)\s*=\s*(\d+)\s*", part)
        if not match or match[1] not in AXES or match[1] in sizes or int(match[2]) < 1:
            raise UserError(
                f"mesh={text!r} is not understood; write axis=size with the axes {', '.join(AXES)}, "
                "each at most once, for example data=8 or data=4,fsdp=2"
            )
        sizes[match[1]] = int(match[2])
    return sizes


def make_mesh(sizes: Mapping[str, int] | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh over the first devices, by default over all devices on the axis `data`.

    Args:
      sizes: sizes of the axes; an axis that is left out has size 1.
      devices: the devices. `None` means those of this run.

    Raises:
      UserError: there are not enough devices, or several processes would not use all devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = dict(sizes or {"data": len(devices)})
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


_ACTIVATION_MESH: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar("mesh", default=None)


@contextlib.contextmanager
def splitting_activations(mesh: Mesh) -> Iterator[None]:
    """A context in which `split_examples` splits the activations of a traced function over a mesh."""
    token = _ACTIVATION_MESH.set(mesh)
    try:
        yield
    finally:
        _ACTIVATION_MESH.reset(token)


def split_examples(activations: jax.Array) -> jax.Array:
    """Returns activations whose leading axis, that of the examples, is split as the batch is.

    Where parameters are split too, XLA would otherwise gather the activations of all devices instead of the
    parameters of a layer. Nothing changes outside `splitting_activations`, and where the devices do not
    divide the examples.
    """
    mesh = _ACTIVATION_MESH.get()
    if mesh is None or num_batch_shards(mesh) == 1 or activations.shape[0] % num_batch_shards(mesh):
        return activations
    return jax.lax.with_sharding_constraint(activations, batch_sharding(mesh))


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
    fits the partition. The first such rule is used. The optimizer's moments of a parameter are sharded like
    the parameter, because their path contains its path. By default the largest dimension that `fsdp` divides
    is split, and small leaves are replicated.

    Raises:
      UserError: a rule matches no leaf, or its partition does not divide the leaf's shape.
    """
    used: set[str] = set()

    def shard(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        name = path_name(path)
        for pattern, spec in rules:
            if re.search(pattern, name) and len(spec) <= len(leaf.shape):
                used.add(pattern)
                _check_divides(name, leaf.shape, spec, mesh)
                return NamedSharding(mesh, spec)
        return NamedSharding(mesh, _default_spec(leaf.shape, mesh.shape["fsdp"]))

    shardings = jax.tree_util.tree_map_with_path(shard, abstract_state)
    for pattern, spec in rules:
        if pattern not in used:
            raise UserError(
                f"the sharding rule {(pattern, spec)} matches no parameter; paths look like "
                f"{path_name(jax.tree_util.tree_leaves_with_path(abstract_state)[-1][0])}"
            )
    return shardings


def path_name(path: tuple[Any, ...]) -> str:
    """Returns a tree path as `params/Dense_0/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _default_spec(shape: tuple[int, ...], fsdp_size: int) -> PartitionSpec:
    if fsdp_size == 1 or math.prod(shape) < MIN_FSDP_SIZE:
        return PartitionSpec()
    divisible = [dim for dim, size in enumerate(shape) if size % fsdp_size == 0]
    if not divisible:
        return PartitionSpec()
    largest = max(divisible, key=lambda dim: shape[dim])
    return PartitionSpec(*(["fsdp" if dim == largest else None for dim in range(largest + 1)]))


def _check_divides(name: str, shape: tuple[int, ...], spec: PartitionSpec, mesh: Mesh) -> None:
    for axis, size in enumerate(shape):
        parts = num_parts(mesh, spec, axis)
        if size % parts:
            raise UserError(
                f"the sharding rule {spec} splits {name} of shape {shape} into {parts} parts, and {parts} "
                f"does not divide {size}; change the rule or the mesh"
            )


MAX_VIRTUAL_DEVICES = 64


def make_mesh_of(text: str | None) -> Mesh:
    """Returns the mesh of the option `--mesh`. On a CPU, `data=8` creates eight virtual devices."""
    sizes = parse_mesh(text) if text else None
    wanted = math.prod((sizes or {}).values())
    if 1 < wanted <= MAX_VIRTUAL_DEVICES and "xla_force_host_platform_device_count" not in os.environ.get(
        "XLA_FLAGS", ""
    ):
        # JAX ignores this if there is an accelerator, and raises an error once a backend runs.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", wanted)
    return make_mesh(sizes)
