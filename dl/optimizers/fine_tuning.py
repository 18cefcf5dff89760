"""Fine-tuning: lower learning rates for layers closer to the input, and layers that begin to train later."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dl.errors import UserError
from dl.optimizers.partition import by_path
from dl.ranges import STEPS, Range, check, check_count
from dl.sharding import path_name
from dl.types import Params

_EMBEDDINGS = re.compile(r"embedding|(?:^|/)(?:class_token|positions|patches)(?:/|$)")
_NUMBERED = re.compile(r"(?:^|/)(?:layer|block)(\d+)(?:/|_|$)")
_SCANNED = re.compile(r"(?:^|/)layer/")

Depth = Callable[[str], int | None]


def depth_of_path(path: str) -> int | None:
    """Returns the depth of a parameter: 0 for embeddings, i + 1 for `layer{i}` or `block{i}`, else `None`.

    `None` means the depth of the head, which is above all layers. Norms after the last layer and poolers have
    it, too, as in BEiT.
    """
    if numbered := _NUMBERED.search(path):
        return int(numbered[1]) + 1
    return 0 if _EMBEDDINGS.search(path) else None


def layer_wise_decay(
    tx: optax.GradientTransformation,
    decay: float,
    depth: Depth = depth_of_path,
    *,
    num_layers: int | None = None,
) -> optax.GradientTransformation:
    """Returns an optimizer whose learning rate falls from the head to the embeddings.

    With L layers, the updates of layer i are multiplied by decay^(L − i), i = 0, …, L − 1, those of the
    embeddings by decay^(L + 1), and those of the head by 1. So is the weight decay, as it is a part of the
    update. The learning rate in the log is that of the head.

    Source: Clark et al. 2020 (ELECTRA), appendix B, for BERT; Bao et al. 2022 (BEiT), appendix, for ViT.

    Args:
      tx: an optimizer whose state does not depend on the parameters, so not `schedule_free_adamw`.
      decay: factor from each layer to the one below it, in (0, 1]. Usual are 0.65 to 0.95.
      depth: function from a path to the depth: 0 for embeddings, i + 1 for layer i, `None` for the head. The
        default suits BERT, GPT-2, Llama, T5 and ViT. Layers that are scanned, `…/layer/…`, have the depths of
        their leading axis.
      num_layers: L. `None` means the layers of the parameters that are trained. State it where some layers
        are frozen, or where another optimizer, such as `gradual_unfreezing`, gives this one a part of them.

    Raises:
      UserError: `decay` or `num_layers` is out of range, no parameter belongs to a layer, or one belongs to a
        layer above the last, when the state is initialised.
    """
    check("decay", decay, Range(0, 1, above_low=True))
    if num_layers is not None:
        check_count("num_layers", num_layers, STEPS)

    def factors(params: Params) -> Params:
        leaves = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
        depths = {name: _depths(name, leaf, depth) for name, leaf in leaves.items()}
        top = 1 + max((int(np.max(known)) for known in depths.values() if known is not None), default=0)
        if top == 1 and num_layers is None:
            raise UserError(
                f"no parameter belongs to a layer, so layer_wise_decay changes no rate; paths look like "
                f"{next(iter(leaves), None)}: give it another function depth"
            )
        if num_layers is not None and top > num_layers + 1:
            raise UserError(
                f"num_layers={num_layers}, and the parameters have {top - 1} layers; correct num_layers"
            )
        top = top if num_layers is None else num_layers + 1

        def factor(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
            known = depths[path_name(path)]
            exponents = np.asarray(0 if known is None else top - known)
            shape = exponents.shape + (1,) * (leaf.ndim - exponents.ndim)
            return jnp.asarray(decay**exponents, leaf.dtype).reshape(shape)

        return jax.tree_util.tree_map_with_path(factor, params)

    def init(params: Params) -> optax.OptState:
        state = tx.init(params)
        if any(_is_schedule_free(node) for node in jax.tree.leaves(state, is_leaf=_is_schedule_free)):
            raise UserError(
                "layer_wise_decay cannot scale the updates of schedule_free_adamw, whose state depends on "
                "them; use adamw"
            )
        factors(params)
        return state

    def update(
        updates: Params, state: optax.OptState, params: Params | None = None, **extra: Any
    ) -> tuple[Params, optax.OptState]:
        updates, state = optax.with_extra_args_support(tx).update(updates, state, params, **extra)
        return jax.tree.map(jnp.multiply, factors(updates), updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def _depths(name: str, leaf: jax.Array, depth: Depth) -> int | np.ndarray | None:
    return np.arange(1, len(leaf) + 1) if _SCANNED.search(name) else depth(name)


def _is_schedule_free(node: object) -> bool:
    return isinstance(node, optax.contrib.ScheduleFreeState)


class UnfreezingState(NamedTuple):
    """The number of steps so far, and the state of the optimizer."""

    num_steps: jax.Array
    inner: optax.OptState


def gradual_unfreezing(
    tx: optax.GradientTransformation, starts: Mapping[str, int]
) -> optax.GradientTransformation:
    """Returns an optimizer that trains each part of a model from a step of its own on.

    Before its first step the update of a part is exactly zero and its state does not change. So its moments
    and their bias corrections begin there, as those of a parameter of PyTorch whose `requires_grad` is set
    late. The learning rate follows its schedule from the first step of the run. All of it is one program,
    which is compiled once. For example, this trains the head alone for 100 steps, then also the last layer,
    and in the end all::

        gradual_unfreezing(adamw(1e-4), {"^head/": 0, "layers/layer11/": 100, "": 200})

    In contrast to `Experiment.frozen`, the gradients of all parts are computed in each step, and batch norms
    update their running statistics. `clip_norm` of the optimizer applies to each part by itself.

    Source: Howard & Ruder 2018, section 3.3.

    Args:
      tx: an optimizer of `dl.optimizers`.
      starts: number of steps before a part is trained, by regular expression. A parameter belongs to the
        first expression that matches its path. The empty expression matches every path.

    Raises:
      UserError: a number of steps is negative or not whole; or, when the state is initialised, a parameter
        matches no pattern, or a pattern is the first match of no parameter.
    """
    return by_path({pattern: _from_step(tx, start) for pattern, start in starts.items()})


def _from_step(tx: optax.GradientTransformation, start: int) -> optax.GradientTransformation:
    start = check_count("the number of steps before a part is trained", start, Range(0, 2**31 - 1))

    def init(params: Params) -> UnfreezingState:
        return UnfreezingState(jnp.zeros((), jnp.int32), tx.init(params))

    def update(
        updates: Params, state: UnfreezingState, params: Params | None = None, **extra: Any
    ) -> tuple[Params, UnfreezingState]:
        is_trained = state.num_steps >= start
        updates, inner = optax.with_extra_args_support(tx).update(updates, state.inner, params, **extra)

        def kept(new: Any, old: Any) -> Any:
            return new if _is_schedule(new) else jnp.where(is_trained, new, old)

        inner = jax.tree.map(kept, inner, state.inner, is_leaf=_is_schedule)
        # The sum with -0.0 keeps every bit of a parameter, also that of -0.0.
        updates = jax.tree.map(lambda leaf: jnp.where(is_trained, leaf, jnp.full_like(leaf, -0.0)), updates)
        return updates, UnfreezingState(state.num_steps + 1, inner)

    return optax.GradientTransformationExtraArgs(init, update)


def _is_schedule(node: object) -> bool:
    return isinstance(node, optax.InjectStatefulHyperparamsState)
