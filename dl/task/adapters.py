"""Adapters from models of any library to two pure functions. The adapter of NNX is in `nnx_model`."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dl.errors import UserError
from dl.outermost import outermost_call
from dl.task.decoder import Cache, Decoder
from dl.task.model import AnyModel, Inputs, Model, arguments, check_takes, takes_argument_train
from dl.types import Key, ModelState, Params, Variables


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

        A Linen module with a method `empty_cache(num_rows, length)` can write sequences: its `__call__` takes
        `cache` and returns the logits after the last token of each row and the cache, as
        `models.blocks.decoder.decode` does. The `__call__` of an encoder-decoder reads two
        sequences. So it has a method `extend(tokens_BT, segment_ids_BT, cache)` that returns the same pair,
        and a method `fill_memory(cache, source_BS, mask_BS)` that returns the cache with what the encoder
        put out.

    Raises:
      UserError: it is none of these, or what it returns is not the array that a task measures.
    """
    if isinstance(model, nn.Module):
        return _of_linen(model)
    if isinstance(model, Model):
        return model._replace(init=_with_params(model.init), apply=_seen(_pair(model.apply)))
    from dl.task.nnx_model import of_nnx  # flax.nnx takes a while to import

    of_functions = of_nnx(model)
    return Model(of_functions.init, _seen(of_functions.apply))


def _of_linen(module: nn.Module) -> Model:
    takes_train = takes_argument_train(type(module))

    def apply(
        params: Params, model_state: ModelState, inputs: Inputs, key: Key | None
    ) -> tuple[jax.Array, ModelState]:
        variables = {"params": params, **model_state}
        mode: dict[str, Any] = {"train": key is not None} if takes_train else {}
        if key is None:
            return _array(module.apply(variables, *arguments(inputs), **mode)), model_state
        outputs, model_state = module.apply(
            variables, *arguments(inputs), **mode, rngs={"dropout": key}, mutable=list(model_state)
        )
        return _array(outputs), model_state

    def init(key: Key, inputs: Inputs) -> Variables:
        check_takes(type(module), inputs)
        return module.init(key, *arguments(inputs))

    def intermediates(variables: Variables, inputs: Inputs) -> ModelState:
        mode: dict[str, Any] = {"train": False} if takes_train else {}
        _, sown = module.apply(variables, *arguments(inputs), **mode, mutable=["intermediates"])
        return sown.get("intermediates", {})

    rules = getattr(module, "sharding_rules", ())
    return Model(init, apply, _decoder_of_linen(module), intermediates, rules)


def _decoder_of_linen(module: nn.Module) -> Decoder | None:
    if not hasattr(module, "empty_cache"):
        return None

    def extend(
        variables: Variables, cache: Cache, tokens_BT: jax.Array, mask_BT: jax.Array
    ) -> tuple[jax.Array, Cache]:
        segment_ids_BT = jnp.asarray(mask_BT, jnp.int32)
        method = "extend" if hasattr(module, "extend") else "__call__"
        logits_BV, cache = module.apply(variables, tokens_BT, segment_ids_BT, cache=cache, method=method)
        return logits_BV, cache

    def encode(variables: Variables, cache: Cache, source_BS: jax.Array, mask_BS: jax.Array) -> Cache:
        return module.apply(variables, cache, source_BS, mask_BS, method="fill_memory")

    return Decoder(module.empty_cache, extend, encode if hasattr(module, "fill_memory") else None)


def _seen(apply: Callable[..., tuple[jax.Array, ModelState]]) -> Callable[..., Any]:
    """Returns the same function, wrapped so that `outermost.around_outermost` applies to its calls."""

    def seen_apply(
        params: Params, model_state: ModelState, inputs: Inputs, key: Key | None
    ) -> tuple[jax.Array, ModelState]:
        updated = model_state

        def call(inputs: Inputs) -> jax.Array:
            nonlocal updated
            outputs, updated = apply(params, model_state, inputs, key)
            return outputs

        return _array(outermost_call(call, inputs)), updated

    return seen_apply


def _with_params(init: Callable[..., Any]) -> Callable[..., Any]:
    def checked_init(key: Key, inputs: Inputs) -> Any:
        variables = init(key, inputs)
        if not isinstance(variables, Mapping) or "params" not in variables:
            names = f"a dict of {', '.join(map(str, variables))}" if isinstance(variables, Mapping) else ""
            raise UserError(
                f"init of a dl.task.Model returned {names or _kind(variables)}; it must return a dict of "
                'collections, {"params": {...}}, of which params are trained'
            )
        return variables

    return checked_init


def _pair(apply: Callable[..., Any]) -> Callable[..., Any]:
    def checked_apply(params: Params, model_state: ModelState, inputs: Inputs, key: Key | None) -> Any:
        returned = apply(params, model_state, inputs, key)
        if not isinstance(returned, tuple) or len(returned) != 2 or not isinstance(returned[1], Mapping):
            raise UserError(
                f"apply of a dl.task.Model returned {_kind(returned)}; it must return a pair, the outputs "
                "and the other collections: (outputs, model_state)"
            )
        return returned

    return checked_apply


def _array(outputs: Any) -> jax.Array:
    """Returns what a model put out, which must be one array."""
    if not hasattr(outputs, "shape"):
        raise UserError(
            f"the model returned {_kind(outputs)} in place of one array; return the outputs alone, or write "
            "a dl.task.Task with a loss of its own"
        )
    return jnp.asarray(outputs)


def _kind(value: Any) -> str:
    if isinstance(value, jax.Array):
        return "one array"
    return "None" if value is None else f"a value of type {type(value).__name__}"
