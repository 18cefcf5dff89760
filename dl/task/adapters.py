"""Adapters from models of any library to two pure functions. The adapter of NNX is in `nnx_model`."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dl.outermost import outermost_call
from dl.task.model import AnyModel, Model, takes_argument_train
from dl.types import Key, ModelState, Params


def as_model(model: AnyModel) -> Model:
    """Returns a model as two pure functions.

    Args:
      model: a model of one of three kinds.

        - A Linen module. In training the random stream `dropout` is the key, and every collection may change.
        - A function from `nnx.Rngs` to an NNX module, such as `lambda rngs: Net(rngs=rngs)`. The function is
          needed because the initial parameters follow from the seed of a run. An NNX module is not accepted,
          because it already has parameters.
        - A `Model`.

        If the `__call__` of a module has an argument `train`, it is True in training and False in evaluation.

    Raises:
      TypeError: the model is of another kind.
    """
    if isinstance(model, nn.Module):
        return _of_linen(model)
    if isinstance(model, Model):
        return Model(model.init, _seen(model.apply))
    from dl.task.nnx_model import of_nnx  # flax.nnx takes a while to import

    of_functions = of_nnx(model)
    return Model(of_functions.init, _seen(of_functions.apply))


def _of_linen(module: nn.Module) -> Model:
    takes_train = takes_argument_train(type(module))

    def apply(
        params: Params, model_state: ModelState, inputs: jax.Array, key: Key | None
    ) -> tuple[jax.Array, ModelState]:
        variables = {"params": params, **model_state}
        mode: dict[str, Any] = {"train": key is not None} if takes_train else {}
        if key is None:
            return jnp.asarray(module.apply(variables, inputs, **mode)), model_state
        outputs, model_state = module.apply(
            variables, inputs, **mode, rngs={"dropout": key}, mutable=list(model_state)
        )
        return jnp.asarray(outputs), model_state

    return Model(module.init, apply)


def _seen(apply: Callable[..., tuple[jax.Array, ModelState]]) -> Callable[..., Any]:
    """Returns the same function, wrapped so that `outermost.around_outermost` applies to its calls."""

    def seen_apply(
        params: Params, model_state: ModelState, inputs: jax.Array, key: Key | None
    ) -> tuple[jax.Array, ModelState]:
        updated = model_state

        def call(inputs: jax.Array) -> jax.Array:
            nonlocal updated
            outputs, updated = apply(params, model_state, inputs, key)
            return outputs

        return jnp.asarray(outermost_call(call, inputs)), updated

    return seen_apply
