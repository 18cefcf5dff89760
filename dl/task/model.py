"""The contract of a model: two pure functions."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from dl.types import Key, ModelState, Params, Variables


class Model(NamedTuple):
    """A model as two pure functions.

    For example, this is a linear map::

        Model(
            init=lambda key, inputs: {"params": {"w": jax.random.normal(key, (inputs.shape[-1], 10))}},
            apply=lambda params, model_state, inputs, key: (inputs @ params["w"], model_state),
        )

    Attributes:
      init: function from a random key and inputs to the variables: nested dicts of arrays. `params` holds the
        parameters. Other collections, such as `batch_stats`, hold the rest.
      apply: function from parameters, the other collections, inputs and a random key to the outputs and the
        updated collections. In evaluation the key is None: dropout is off, and no collection changes.
    """

    init: Callable[[Key, jax.Array], Variables]
    apply: Callable[[Params, ModelState, jax.Array, Key | None], tuple[jax.Array, ModelState]]


AnyModel = nn.Module | Model | Callable[..., Any]
"""A Linen module, a `Model`, or a function from `nnx.Rngs` to an NNX module; see `adapters.as_model`."""


def takes_argument_train(module_type: type) -> bool:
    """Returns whether `__call__` of a class of modules has an argument `train`."""
    parameters = inspect.signature(module_type.__call__).parameters.values()
    return any(p.name == "train" or p.kind is p.VAR_KEYWORD for p in parameters)
