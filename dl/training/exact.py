"""Gradients whose bits do not depend on the number of devices or processes.

The sum over a batch that is split over devices is rounded in an order that depends on their number. Here each
batch is cut into a fixed number of parts. The gradient of a part is computed on one device, by the same
program for every mesh, and the gradients are added in a fixed binary tree: first on each device, then by
exchanges between pairs of devices (recursive doubling). Addition is commutative, so both devices of a pair
get the same bits. The optimizer then computes with whole arrays on every device.

Shapes: P parts, B examples of a batch.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from dl.errors import UserError
from dl.gradients import mean_and_loss, mean_gradient
from dl.metrics import Mean
from dl.sharding import BATCH_AXES, num_batch_shards, replicated
from dl.training.step import StepConfig
from dl.types import Aux, Batch, GradFn, Key, LossFn, ModelState, Params

NUM_PARTS = 8


def exact_config(config: StepConfig, batch_size: int, mesh: Mesh, num_runs: int) -> StepConfig:
    """Returns the parts of a step whose results have the same bits on every mesh; see `exact_gradient`."""
    if num_runs > 1:
        raise UserError("reduction=exact is for a single run; leave out --num-seeds")
    return dataclasses.replace(
        config,
        grad_fn=exact_gradient(config.grad_fn, batch_size, mesh),
        tx=on_whole_arrays(config.tx, mesh),
    )


def exact_gradient(grad_fn: GradFn, batch_size: int, mesh: Mesh) -> GradFn:
    """Returns a `grad_fn` whose gradient, loss and running statistics have the same bits on every mesh.

    Each part has the batch statistics of its own examples, and its own dropout masks.

    Args:
      grad_fn: the `grad_fn` of the experiment.
      batch_size: number of examples in each batch.
      mesh: the devices; the axes `data` and `fsdp` together may have 1, 2, 4 or 8 of them.

    Raises:
      UserError: the gradient is not that of the mean loss, or the batch or the mesh cannot be divided so.
    """
    shards = num_batch_shards(mesh)
    if grad_fn is not mean_gradient:
        raise UserError(
            "reduction=exact needs the gradient of the mean loss, but the experiment has a grad_fn of its "
            "own; leave out the option"
        )
    if NUM_PARTS % shards or mesh.size != shards:
        raise UserError(
            f"reduction=exact cannot divide {NUM_PARTS} parts over this mesh of {mesh.size} devices; use 1, "
            "2, 4 or 8 devices on the axes data and fsdp"
        )
    if batch_size % NUM_PARTS:
        raise UserError(
            f"batch_size={batch_size} cannot be divided into {NUM_PARTS} parts, which reduction=exact needs; "
            f"use a multiple of {NUM_PARTS}"
        )

    def of_loss(loss_fn: LossFn):  # type: ignore[no-untyped-def]
        differentiate = jax.value_and_grad(mean_and_loss(loss_fn), has_aux=True)

        def exact(
            params: Params, model_state: ModelState, batch: Batch, key: Key | None
        ) -> tuple[tuple[jax.Array, Aux], Params]:
            def of_part(numbered: tuple[Batch, jax.Array]) -> Any:
                part, number = numbered

                def of_one() -> Any:
                    part_key = None if key is None else jax.random.fold_in(key, number)
                    (_, (loss, aux)), gradient = differentiate(params, model_state, part, part_key)
                    sums = jax.tree.map(lambda g: g * loss.divisor.astype(g.dtype), gradient)
                    return sums, loss, aux

                return _apart(of_one, number)

            def of_device(parts: Batch, numbers_P: jax.Array) -> Any:
                sums, loss, aux = jax.lax.map(of_part, (parts, numbers_P))
                metrics = {name: Mean(m.total, m.count, None, m.better) for name, m in aux.metrics.items()}
                whole = sums, loss, metrics, aux.model_state
                return jax.tree.map(lambda x: _tree_sum(x, shards), whole)

            parts = jax.tree.map(lambda x: x.reshape(NUM_PARTS, -1, *x.shape[1:]), batch)
            split = PartitionSpec(BATCH_AXES)
            sums, loss, metrics, states = jax.shard_map(
                of_device,
                mesh=mesh,
                in_specs=(split, split),
                out_specs=PartitionSpec(),
                check_vma=False,
            )(parts, jnp.arange(NUM_PARTS))

            def means() -> Any:
                share = 1.0 / loss.divisor  # XLA may divide by multiplying, which is rounded differently
                gradient = jax.tree.map(lambda g: g * share.astype(g.dtype), sums)
                return loss.compute(), jax.tree.map(_mean_of_parts, states, model_state), gradient

            mean, next_state, gradient = _apart(means, jnp.int32(loss.count))
            return (mean, Aux(next_state, metrics)), gradient

        return exact

    return of_loss


def on_whole_arrays(tx: optax.GradientTransformation, mesh: Mesh) -> optax.GradientTransformation:
    """Returns the optimizer, computing with whole arrays on every device, so that sums have equal bits."""
    whole = replicated(mesh)

    def gathered(tree: Any) -> Any:
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, whole), tree)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        inner = optax.with_extra_args_support(tx)
        args = gathered((updates, state, params))
        loss = jax.lax.bitcast_convert_type(jnp.asarray(extra["value"], jnp.float32), jnp.int32)
        return gathered(_apart(lambda: inner.update(*args, **extra), loss))

    return optax.GradientTransformationExtraArgs(tx.init, update)


def _apart(fn: Callable[[], Any], number: jax.Array) -> Any:
    """Returns what `fn` returns, computed apart: XLA does not fuse it with the operations around it.

    Fused operations are rounded differently, and the operations around depend on the mesh. XLA fuses across
    barriers on a CPU, but not into a branch. It cannot know that this branch is always taken.

    Args:
      fn: the function.
      number: a whole number that XLA does not know.
    """
    shapes = jax.eval_shape(fn)
    is_so = jnp.minimum(number & jnp.int32(2**31 - 1), 0) == 0
    return jax.lax.cond(is_so, fn, lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))


def _tree_sum(x: jax.Array, shards: int) -> jax.Array:
    """Returns the sum over the leading axis of all devices, added in pairs, then pairs of pairs, …."""
    while len(x) > 1:
        x = x[0::2] + x[1::2]
    total, distance = x[0], 1
    while distance < shards:
        other = jax.lax.ppermute(total, BATCH_AXES, [(k, k ^ distance) for k in range(shards)])
        total, distance = total + other, 2 * distance
    return total


def _mean_of_parts(total: jax.Array, before: jax.Array) -> jax.Array:
    if jnp.issubdtype(before.dtype, jnp.inexact):
        return total / NUM_PARTS
    return total // NUM_PARTS  # a counter, which is equal in all parts
