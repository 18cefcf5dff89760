"""Mixed precision: the dtypes of parameters, computation and outputs, and the loss scale for float16.

Source: Micikevicius et al. 2018, "Mixed Precision Training".
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from dl.metrics import Mean
from dl.outermost import around_outermost
from dl.ranges import POSITIVE, STEPS, check, check_count
from dl.task import Decoder, Task
from dl.types import Aux, Batch, Key, ModelState, Params, Variables


@dataclasses.dataclass(frozen=True)
class Policy:
    """The dtypes of a model. Pass `compute` as the `dtype` of Linen modules, `param` as `param_dtype`.

    Attributes:
      param: dtype of the stored parameters. It should be float32 if they are trained.
      compute: dtype of matrix products and activations.
      output: dtype of logits and losses, which need a large range and a high precision.
    """

    param: Any = jnp.float32
    compute: Any = jnp.float32
    output: Any = jnp.float32

    @property
    def needs_loss_scale(self) -> bool:
        """Whether a loss scale is needed: float16 has 5 exponent bits, so small gradients underflow."""
        return jnp.dtype(self.compute) == jnp.float16


FULL = Policy()
BFLOAT16 = Policy(compute=jnp.bfloat16)
FLOAT16 = Policy(compute=jnp.float16)


PRECISIONS = {"float32": FULL, "bfloat16": BFLOAT16, "float16": FLOAT16}


def computing_in(policy: Policy, task: Task) -> Task:
    """Returns a task whose models compute in another precision. The given parameters are not changed.

    The models get parameters and inputs rounded to `policy.compute`. Their outputs are converted to
    `policy.output`. Targets, loss and metrics keep their precision. Gradients have the dtype of the
    parameters. Statistics, such as those of batch norms, are kept in float32. A module with an explicit
    `dtype` computes in that dtype.
    """

    def loss(params: Params, model_state: ModelState, batch: Batch, key: Key | None) -> tuple[Mean, Aux]:
        with around_outermost(_converting(policy)):
            mean, aux = task.loss(_cast(params, policy.compute), model_state, batch, key)
        kept = jax.tree.map(lambda new, old: new.astype(old.dtype), aux.model_state, dict(model_state))
        # The sums are kept in float32 at least, because in float16 they would soon overflow.
        total, count = (jnp.promote_types(x.dtype, jnp.float32) for x in (mean.total, mean.count))
        mean = mean.replace(total=mean.total.astype(total), count=mean.count.astype(count))  # type: ignore[attr-defined]
        return mean, Aux(kept, aux.metrics)

    def converted(function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a function of variables and more that computes in the other precision."""

        def call(variables: Variables, *args: Any) -> Any:
            params = {"params": _cast(variables.get("params", {}), policy.compute)}
            with around_outermost(_converting(policy)):
                return function({**variables, **params}, *args)

        return call

    converted_task = task.with_uses(converted)._replace(loss=loss)
    if converted_task.decoder is None:
        return converted_task
    return converted_task._replace(decoder=_with_cache_in(policy, converted_task.decoder))


def _with_cache_in(policy: Policy, decoder: Decoder) -> Decoder:
    """Returns a decoder whose cache has the dtype of the computation, so that no step converts all of it."""
    encode = decoder.encode

    def same_dtypes(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda leaf, before: leaf.astype(before.dtype), new, old)

    def empty(num_rows: int, length: int) -> Any:
        return _cast(decoder.empty(num_rows, length), policy.compute)

    def extend(variables: Variables, cache: Any, *tokens: Any) -> Any:
        logits_BV, extended = decoder.extend(variables, cache, *tokens)
        return logits_BV, same_dtypes(extended, cache)

    def encoded(*arguments: Any) -> Any:
        assert encode is not None
        return _cast(encode(*arguments), policy.compute)

    return Decoder(empty, extend, None if encode is None else encoded)


def _converting(policy: Policy) -> Callable[..., Any]:
    def wrap(call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        args, kwargs = _cast((args, kwargs), policy.compute)
        return _cast(call(*args, **kwargs), policy.output)

    return wrap


def _cast(tree: Any, dtype: Any) -> Any:
    """Returns the tree with its floating-point arrays in another dtype."""

    def convert(leaf: Any) -> Any:
        is_floating = isinstance(leaf, jax.Array | np.ndarray) and jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(dtype) if is_floating else leaf

    return jax.tree.map(convert, tree)


@flax.struct.dataclass
class LossScale:
    """A loss scale that doubles after `growth_interval` finite steps and halves on overflow.

    Source: Micikevicius et al. 2018, section 3.2.

    Attributes:
      scale: factor on the loss, float32.
      num_finite: number of finite steps since the last change, int32.
      growth_interval: number of finite steps after which the scale doubles.
    """

    scale: jax.Array
    num_finite: jax.Array
    growth_interval: int = flax.struct.field(pytree_node=False, default=2000)

    @classmethod
    def create(cls, scale: float = 2.0**15, growth_interval: int = 2000) -> "LossScale":
        check("scale", scale, POSITIVE)
        growth_interval = check_count("growth_interval", growth_interval, STEPS)
        return cls(jnp.float32(scale), jnp.int32(0), growth_interval)

    def update(self, is_finite: jax.Array) -> "LossScale":
        """Returns the scale for the next step."""
        grown = self.num_finite + 1 >= self.growth_interval
        on_finite = jnp.where(grown, self.scale * 2.0, self.scale)
        scale = jnp.where(is_finite, on_finite, jnp.maximum(self.scale * 0.5, 1.0))
        num_finite = jnp.where(is_finite & ~grown, self.num_finite + 1, 0)
        return self.replace(scale=scale, num_finite=num_finite)  # type: ignore[attr-defined]


def all_finite(tree: Any) -> jax.Array:
    """Returns a bool scalar: whether no leaf holds an infinity or a NaN."""
    return jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def has_nan(tree: Any) -> jax.Array:
    """Returns a bool scalar: whether a leaf holds a NaN."""
    return jnp.array([jnp.isnan(leaf).any() for leaf in jax.tree.leaves(tree)]).any()
