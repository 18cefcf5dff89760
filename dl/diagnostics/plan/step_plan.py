"""The plan of a step: memory, work, time and price on devices that need not be there."""

import dataclasses
import re
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dl.data.pipeline import MAX_RESIDENT_BYTES
from dl.data.source import is_resident
from dl.diagnostics.plan.price import Prices, read_prices
from dl.diagnostics.plan.records import Memory, Plan, Roofline
from dl.diagnostics.plan.target import Target, find_target
from dl.diagnostics.plan.traffic import read_traffic
from dl.errors import UserError
from dl.experiment import Experiment, stored_batch
from dl.flops import count_jaxpr_flops, product_dtype
from dl.sharding import REST, fill_mesh, format_mesh, make_mesh, num_batch_shards, parse_mesh
from dl.training.program import Program
from dl.training.state import num_params

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class _Shapes:
    """The shapes of training batches, in place of batches; nothing is read."""

    def __init__(self, experiment: Experiment):
        self.shapes = [(stored_batch(experiment), 1)]


def plan(
    experiment: Experiment,
    target: str | Target,
    mesh: str | None = None,
    prices: Prices | None = None,
) -> Plan:
    """Compiles the training step of an experiment for a target, and returns what it takes.

    Nothing is allocated, and no data are read beside their shapes. If the state alone is larger than the
    memory of a device, nothing is compiled. Batches of several lengths are planned for the longest.

    Args:
      experiment: the experiment, with its precision; see `dl.training.run_options.with_run_options`.
      target: the devices, such as `tpu:v5e:4x4`; see `find_target`.
      mesh: axis sizes, such as `data=2,fsdp=8`. `None` means `data` with all devices.
      prices: a table of prices. `None` means that of this package.

    Raises:
      UserError: the target or the mesh is not understood, the batch does not divide over the devices, or the
        compiler of the target is not installed.
    """
    target = find_target(target) if isinstance(target, str) else target
    return compile_step(experiment, target, mesh, prices or read_prices())[0]


def compile_step(
    experiment: Experiment, target: Target, mesh_text: str | None, prices: Prices
) -> tuple[Plan, Program, Any]:
    """Returns the plan of a step, its program, and the compiled step, `None` if it does not fit."""
    mesh = mesh_on(target, mesh_text)
    shards = num_batch_shards(mesh)
    if experiment.batch_size % shards:
        raise UserError(
            f"batch_size={experiment.batch_size} does not divide over the {shards} parts of the mesh "
            f"{format_mesh(mesh.shape)}; use a multiple of {shards}"
        )
    batches: Any = {"train": _Shapes(experiment)}
    program = Program(experiment, mesh, batches, is_allocated=False)
    state, batch = program.abstract_state, program.traced[0].batch
    memory = Memory(
        parameters=_bytes_of(state.params),
        optimizer=_bytes_of(state.opt_state),
        other_state=_bytes_of(state.replace(params=(), opt_state=())),
        batch=sum(_num_bytes(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(batch)) // shards,
        data=_data_bytes(experiment),
        limit=target.chip.memory,
    )
    traced = program.traced[0].traced
    forward = jax.make_jaxpr(program.config.loss_fn)(state.params, state.model_state, batch, state.rng)
    flops, dtype = count_jaxpr_flops(traced.jaxpr), product_dtype(traced.jaxpr)
    per_hour = prices.per_hour.get(target.key)
    planned = Plan(
        target=target,
        mesh={axis: size for axis, size in mesh.shape.items() if size > 1} or {"data": 1},
        batch_size=experiment.batch_size,
        num_steps=experiment.num_steps,
        num_parameters=num_params(state.params),
        memory=memory,
        flops=flops,
        model_flops=3 * count_jaxpr_flops(forward.jaxpr),
        flops_per_device=flops / _num_workers(mesh, program.shardings),
        dtype=dtype,
        bytes_moved=None,
        collectives=(),
        roofline=None,
        price_per_hour=None if per_hour is None else per_hour * target.num_devices,
        prices=prices,
        notes=(program.mesh_notice,) if program.mesh_notice else (),
    )
    if memory.limit is not None and memory.peak > memory.limit:
        problem = "the state and a batch alone are larger than the memory of a device"
        return dataclasses.replace(planned, problem=problem), program, None
    try:
        with warnings.catch_warnings():
            # What was compiled for devices that are not here cannot be read back, and is compiled again.
            warnings.filterwarnings("ignore", "Error reading persistent compilation cache")
            compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        stated = _stated_bytes(str(error), memory)
        memory = dataclasses.replace(memory, stated=stated)
        problem = " ".join(str(error).split(": ", 1)[-1].split())[:200]
        return dataclasses.replace(planned, memory=memory, problem=problem), program, None
    return _with_compiled(planned, compiled), program, compiled


def mesh_on(target: Target, text: str | None) -> Mesh:
    """Returns a mesh of all devices of a target.

    Raises:
      UserError: the mesh has another number of devices.
    """
    sizes = fill_mesh(parse_mesh(text) if text else {"data": REST}, target.num_devices)
    wanted = int(np.prod(list(sizes.values())))
    if wanted != target.num_devices:
        raise UserError(
            f"mesh {format_mesh(sizes)} has {wanted} devices, and the target {target.text} has "
            f"{target.num_devices}; choose sizes whose product is {target.num_devices}"
        )
    return make_mesh(sizes, target.devices)


def _with_compiled(planned: Plan, compiled: Any) -> Plan:
    target, memory = planned.target, planned.memory
    analysis = compiled.memory_analysis()
    arguments = memory.state + memory.batch
    memory = dataclasses.replace(
        memory,
        padding=max(analysis.argument_size_in_bytes - arguments, 0),
        temporaries=analysis.temp_size_in_bytes,
        program=analysis.generated_code_size_in_bytes
        + max(analysis.output_size_in_bytes - analysis.alias_size_in_bytes, 0),
    )
    traffic = read_traffic(compiled.as_text(), target.num_devices)
    notes = list(planned.notes)
    if traffic.num_unknown_loops:
        notes.append(
            f"the lengths of {traffic.num_unknown_loops} loops are not known; what they move counts once"
        )
    roofline = None
    if target.chip.bandwidth is not None:
        roofline = Roofline(
            compute=planned.flops_per_device / target.chip.peak(planned.dtype),
            memory=traffic.bytes_moved / target.chip.bandwidth,
            collectives=sum(c.traffic / _ring_bandwidth(target, c.group) for c in traffic.collectives),
        )
    return dataclasses.replace(
        planned,
        memory=memory,
        bytes_moved=traffic.bytes_moved,
        collectives=traffic.collectives,
        roofline=roofline,
        notes=tuple(notes),
    )


def _ring_bandwidth(target: Target, group: int) -> float:
    """Returns the bytes/s that a device sends: along one axis of a torus, or along all if all take part."""
    chip = target.chip
    assert chip.link_bandwidth is not None
    if chip.torus_axes == 0 or group == target.num_devices:
        return chip.link_bandwidth
    return chip.link_bandwidth / chip.torus_axes


def _num_workers(mesh: Mesh, shardings: Any) -> int:
    """Returns the number of devices that share the products; an axis that splits nothing repeats them."""
    splits = any("tensor" in _axes(sharding.spec) for sharding in jax.tree.leaves(shardings))
    return num_batch_shards(mesh) * (mesh.shape["tensor"] if splits else 1)


def _axes(spec: Any) -> set[str]:
    return {axis for part in spec if part for axis in (part if isinstance(part, tuple) else (part,))}


def _bytes_of(tree: Any) -> int:
    """Returns the bytes of the part of a tree that each device holds."""
    return sum(
        _num_bytes(leaf.sharding.shard_shape(leaf.shape), leaf.dtype) for leaf in jax.tree.leaves(tree)
    )


def _num_bytes(shape: tuple[int, ...], dtype: Any) -> int:
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        keys = jax.eval_shape(lambda: jax.random.key_data(jnp.zeros(shape, dtype)))
        return int(np.prod(keys.shape)) * keys.dtype.itemsize
    return int(np.prod(shape)) * dtype.itemsize


def _data_bytes(experiment: Experiment) -> int:
    source = experiment.data.train
    if is_resident(source) and source.nbytes <= MAX_RESIDENT_BYTES:
        return int(source.nbytes)
    return 0


def _stated_bytes(message: str, memory: Memory) -> int:
    """Returns the bytes that a program needs, as the compiler's message states them."""
    numbers = [
        float(n) * _UNITS[unit] for n, unit in re.findall(r"([\d.]+)([KMGT]?)i?B?(?=[\s),.])", message)
    ]
    known = memory.state + memory.batch + memory.data
    if found := re.search(r"Used ([\d.]+)([KMGT]?)", message):
        return int(float(found[1]) * _UNITS[found[2]]) + memory.data
    if found := re.search(r"temporaries \(([\d.]+)([KMGT]?)", message):
        return int(float(found[1]) * _UNITS[found[2]]) + known
    return max(int(max(numbers, default=0)), memory.peak)
