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
    """Returns a tree of bools, True for the parameters that weight decay applies to.

    These are the leaves with at least two dimensions. Biases and the scales of norms are vectors, and
    decaying them does not regularise a model. They are also excluded by name, because they have more
    dimensions under `nn.scan` or with several heads. Class tokens and position embeddings are excluded by
    name too, as in the code of DeiT and timm.
    """

    def is_kernel(path: tuple[Any, ...], leaf: jax.Array) -> bool:
        return leaf.ndim >= 2 and not UNDECAYED.fullmatch(path_name(path[-1:]))

    return jax.tree_util.tree_map_with_path(is_kernel, params)


def l1(weight: float, mask: Callable[[Params], Params] = kernels) -> Penalty:
    """Returns the penalty λ Σ|θ| over the parameters that the mask selects; its gradient is λ sign(θ).

    λ is `weight`, at least 0.

    Raises:
      UserError: `weight` is out of range.
    """
    check("weight", weight, NON_NEGATIVE)
    return lambda params: weight * _sum(jnp.abs, params, mask)


def l2(weight: float, mask: Callable[[Params], Params] = kernels) -> Penalty:
    """Returns the penalty λ Σθ², without the factor ½: its gradient is 2 λ θ.

    λ is `weight`, at least 0. With SGD the penalty is equivalent to `weight_decay` = 2 λ. With Adam it is not
    (Loshchilov & Hutter 2019).

    Raises:
      UserError: `weight` is out of range.
    """
    check("weight", weight, NON_NEGATIVE)
    return lambda params: weight * _sum(jnp.square, params, mask)


def with_penalty(task: Task, *penalties: Penalty) -> Task:
    """Returns the task whose loss is the mean plus penalties of the parameters.

    Penalties depend neither on the batch nor on its parts. A batch in which nothing is counted has neither a
    gradient nor a penalty. The metric `loss` does not include the penalties, so that curves can be compared.
    The metric `penalty` is their sum.
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
        # The sum is taken in float32 at least, whatever the precision of the run is.
        lambda leaf, use: (
            function(leaf).sum(dtype=jnp.promote_types(leaf.dtype, jnp.float32)) if use else 0.0
        ),
        params,
        mask(params),
    )
    return sum(jax.tree.leaves(sums), start=jnp.zeros(()))
