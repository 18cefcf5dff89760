"""The contract of a model: two pure functions."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from dl.errors import UserError
from dl.sharding import Rules
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
      intermediates: function from variables and inputs to what the modules sow in evaluation: the collection
        `intermediates` of Linen. `None` means that there is no such function.
      sharding_rules: how the parameters are split over the axis `tensor` of a mesh; see `dl.sharding.Rule`.
    """

    init: Callable[[Key, Inputs], Variables]
    apply: Callable[[Params, ModelState, Inputs, Key | None], tuple[jax.Array, ModelState]]
    decoder: Decoder | None = None
    intermediates: Callable[[Variables, Inputs], ModelState] | None = None
    sharding_rules: Rules = ()


AnyModel = nn.Module | Model | Callable[..., Any]
"""A Linen module, a `Model`, or a function from `nnx.Rngs` to an NNX module; see `adapters.as_model`."""


def takes_argument_train(module_type: type) -> bool:
    """Returns whether `__call__` of a class of modules has an argument `train`."""
    parameters = inspect.signature(module_type.__call__).parameters.values()
    return any(p.name == "train" or p.kind is p.VAR_KEYWORD for p in parameters)


def check_takes(module_type: type, inputs: Inputs) -> None:
    """Raises UserError if `__call__` of a class of modules takes fewer arrays than it is given."""
    parameters = list(inspect.signature(module_type.__call__).parameters.values())[1:]
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return
    names = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY and p.name != "train"]
    given = arguments(inputs)
    if len(given) > len(names):
        raise UserError(
            f"{module_type.__name__} takes {len(names)} array{'s' * (len(names) != 1)} "
            f"({', '.join(names)}), and the data have {len(given)} for it; add an argument such as "
            "segment_ids_BT=None to its __call__, which is 0 at padding"
        )
