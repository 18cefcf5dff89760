"""A model of Flax NNX as two pure functions.

The module is split into a graph and arrays, which are merged again for each call.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from dl.errors import UserError
from dl.freezing import norm_is_frozen
from dl.task.model import Inputs, Model, arguments, takes_argument_train
from dl.types import Key, ModelState, Params, Variables


def of_nnx(make: Callable[[nnx.Rngs], nnx.Module]) -> Model:
    """Returns the module that `make(rngs)` returns, as a model of two pure functions.

    Variables of the type `nnx.Param` are the parameters. The others are in collections with the names that
    Linen uses, such as `batch_stats`. The state of random streams is not a variable: each stream draws from
    the key of the call. In evaluation a stream draws the same numbers in every call.

    Raises:
      UserError: `make` is a module, makes something else, or the module holds an array as it is.
    """
    if isinstance(make, nnx.Module):
        raise UserError(
            f"{type(make).__name__} is an NNX module that has its parameters already, whatever the seed of a "
            "run; give the function that makes it: lambda rngs: Net(rngs=rngs)"
        )
    if not callable(make):
        raise UserError(
            f"{make!r} is not a model; give a Linen module, a function from nnx.Rngs to an "
            "NNX module, or a dl.task.Model of two functions"
        )

    @functools.cache
    def abstract() -> tuple[Any, nnx.State]:
        return nnx.split(nnx.eval_shape(lambda: _made(make, nnx.Rngs(0))))

    def init(key: Key, inputs: Inputs) -> Variables:
        _, state = nnx.split(_made(make, nnx.Rngs(key)))
        return {"params": {}, **_collections(state)}

    def apply(
        params: Params, model_state: ModelState, inputs: Inputs, key: Key | None
    ) -> tuple[jax.Array, ModelState]:
        graph, shapes = abstract()
        module = nnx.merge(graph, _state(shapes, {"params": params, **model_state}, key))
        module.eval() if key is None else module.train()
        for path, inner in nnx.iter_modules(module):
            if isinstance(inner, nnx.BatchNorm) and norm_is_frozen("/".join(map(str, path))):
                inner.use_running_average = True
        mode = {"train": key is not None} if takes_argument_train(type(module)) else {}
        outputs = module(*arguments(inputs), **mode)
        if key is None:
            return outputs, model_state
        updated = _collections(nnx.state(module))
        known = flatten_dict(dict(model_state))  # Variables that a call creates are discarded.
        kept = {path: leaf for path, leaf in flatten_dict(updated).items() if path in known}
        return outputs, unflatten_dict(kept)

    return Model(init, apply)


def _made(make: Callable[[nnx.Rngs], nnx.Module], rngs: nnx.Rngs) -> nnx.Module:
    module = make(rngs)
    if not isinstance(module, nnx.Module):
        raise UserError(
            f"the function of a model returned {_called(module)}, which is not an NNX module; give a Linen "
            "module, a function from nnx.Rngs to an NNX module, or a dl.task.Model of two functions"
        )
    return module


def _called(made: Any) -> str:
    """Returns what was made in a few words: of an object with many lines its class."""
    shown = repr(made)
    return shown if len(shown) < 80 and "\n" not in shown else f"an object of {type(made).__name__}"


def _collections(state: nnx.State) -> Variables:
    """Returns the arrays of a state by collection, as nested dicts."""
    leaves = {}
    for path, variable in nnx.to_flat_state(state):
        if not isinstance(variable, nnx.Variable):
            raise UserError(
                f"the array {'/'.join(map(str, path))} of an NNX module is not an nnx.Variable; hold it in "
                "an nnx.Param if it is trained, else in an nnx.Variable"
            )
        if not isinstance(variable, nnx.RngState):
            name = nnx.variable_name_from_type(type(variable), allow_register=True)
            leaves[name, *map(str, path)] = variable.get_value()
    return unflatten_dict(leaves)


def _state(shapes: nnx.State, variables: Variables, key: Key | None) -> nnx.State:
    """Returns a state with the arrays of the collections, and random streams that draw from the key."""
    leaves = flatten_dict(dict(variables))
    root = jax.random.key(0) if key is None else key
    filled = []
    for number, (path, variable) in enumerate(nnx.to_flat_state(shapes)):
        leaf = variable.get_value()
        if isinstance(variable, nnx.RngKey):
            stream = jax.random.fold_in(root, number)
            shape = leaf.shape
            value = jax.random.split(stream, math.prod(shape)).reshape(shape) if shape else stream
        elif isinstance(variable, nnx.RngState):
            value = jnp.zeros(leaf.shape, leaf.dtype)
        else:
            value = leaves[nnx.variable_name_from_type(type(variable), allow_register=True), *map(str, path)]
        filled.append((path, variable.replace(value)))
    return nnx.from_flat_state(filled)
