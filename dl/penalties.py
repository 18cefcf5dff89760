"""Penalties on parameters, added to the loss; and `kernels`, the parameters that weight decay applies to."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dl.metrics import Mean
from dl.ranges import NON_NEGATIVE, check
from dl.sharding import path_name
from dl.task import Task
from dl.types import Aux, Batch, Key, ModelState, Params

UNDECAYED = re.compile(
    "bias|scale|(cls|class|dist|distillation|mask|register)_tokens?|positions?|pos_embed(ding)?s?|"
    "position(al)?_embeddings?"
)


Penalty = Callable[[Params], jax.Array]


def kernels(params: Params) -> Params:
    """Returns a tree of bools, True on what weight decay applies to: leaves with two dimensions or more.

    Biases and the scales of norms are vectors; to shrink them buys no regularisation. They are left out by
    name too, for under `nn.scan` or with several heads they have more dimensions. So are class tokens and
    positions, as in the code of DeiT and timm.
    """

    def is_kernel(path: tuple[Any, ...], leaf: jax.Array) -> bool:
        return leaf.ndim >= 2 and not UNDECAYED.fullmatch(path_name(path[-1:]))

    return jax.tree_util.tree_map_with_path(is_kernel, params)


def l1(weight: float, mask: Callable[[Params], Params] = kernels) -> Penalty:
    """Returns the penalty λ Σ|θ| over the parameters that the mask selects; its gradient is λ sign(θ).

    λ is `weight`, at least 0.
    """
    check("weight", weight, NON_NEGATIVE)
    return lambda params: weight * _sum(jnp.abs, params, mask)


def l2(weight: float, mask: Callable[[Params], Params] = kernels) -> Penalty:
    """Returns the penalty λ Σθ², without ½: its gradient is 2 λ θ.

    Under SGD it equals `weight_decay` = 2 λ; under Adam it does not (Loshchilov & Hutter 2019).
    """
    check("weight", weight, NON_NEGATIVE)
    return lambda params: weight * _sum(jnp.square, params, mask)


def with_penalty(task: Task, *penalties: Penalty) -> Task:
    """Returns the task whose loss is the mean plus penalties of the parameters.

    They do not depend on the batch, nor on how it is split. A batch in which nothing is counted has no
    gradient, and no penalty either. The metric `loss` stays the data's, so that curves can be compared;
    `penalty` is the sum of the others.
    """

    def penalized(params: Params, model_state: ModelState, batch: Batch, key: Key | None) -> tuple[Mean, Aux]:
        loss, aux = task.loss(params, model_state, batch, key)
        penalty = sum((penalty(params) for penalty in penalties), start=jnp.zeros(()))
        metrics = {**aux.metrics, "penalty": Mean.of(penalty[None], better="min")}
        return loss.plus(penalty), Aux(aux.model_state, metrics)

    return task._replace(loss=penalized)


def _sum(
    function: Callable[[jax.Array], jax.Array], params: Params, mask: Callable[[Params], Params]
) -> jax.Array:
    sums = jax.tree.map(
        # In float32 at least, whatever the precision of the run.
        lambda leaf, use: (
            function(leaf).sum(dtype=jnp.promote_types(leaf.dtype, jnp.float32)) if use else 0.0
        ),
        params,
        mask(params),
    )
    return sum(jax.tree.leaves(sums), start=jnp.zeros(()))
