"""The contract of a model: two pure functions."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from dl.task.decoder import Decoder
from dl.types import Key, ModelState, Params, Variables

Inputs = jax.Array | tuple[jax.Array | None, ...]
"""What a model reads: one array, or several in the order of its arguments, where None is a missing one."""


def arguments(inputs: Inputs) -> tuple[Any, ...]:
    """Returns the positional arguments of a model's call."""
    return inputs if isinstance(inputs, tuple) else (inputs,)


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
      decoder: functions that write sequences token by token. `None` means that there are none.
    """

    init: Callable[[Key, Inputs], Variables]
    apply: Callable[[Params, ModelState, Inputs, Key | None], tuple[jax.Array, ModelState]]
    decoder: Decoder | None = None


AnyModel = nn.Module | Model | Callable[..., Any]
"""A Linen module, a `Model`, or a function from `nnx.Rngs` to an NNX module; see `adapters.as_model`."""


def takes_argument_train(module_type: type) -> bool:
    """Returns whether `__call__` of a class of modules has an argument `train`."""
    parameters = inspect.signature(module_type.__call__).parameters.values()
    return any(p.name == "train" or p.kind is p.VAR_KEYWORD for p in parameters)
