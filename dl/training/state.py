"""The training state: arrays only, so that what is saved is exactly what resumes."""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import optax

from dl import freezing
from dl.precision import LossScale
from dl.types import Batch, Key, ModelState, Params, Variables


@flax.struct.dataclass
class TrainState:
    """Everything that one training step reads and writes.

    Attributes:
      step: int32, the number of steps done.
      params: the trained parameters.
      model_state: the other Linen collections, such as batch statistics.
      opt_state: of the optimizer.
      rng: a key that never changes; step s draws from `fold_in(rng, s)`.
      ema: the moving average of `params` where the experiment keeps one.
      loss_scale: the dynamic loss scale where float16 is used.
      best: the variables of the best evaluation where the experiment keeps them.
    """

    step: jax.Array
    params: Params
    model_state: ModelState
    opt_state: optax.OptState
    rng: Key
    ema: Params | None = None
    loss_scale: LossScale | None = None
    best: Variables | None = None

    @property
    def eval_params(self) -> Params:
        """The parameters that are evaluated: the average where one is kept, here or by the optimizer.

        The other collections, such as batch statistics, are those of the raw parameters in either case.
        """
        if self.ema is not None:
            return self.ema
        states = jax.tree.leaves(self.opt_state, is_leaf=_is_schedule_free)
        averaging = [s for s in states if _is_schedule_free(s)]
        if averaging:
            trained = freezing.part_like(self.params, averaging[0].z)
            averaged = optax.contrib.schedule_free_eval_params(averaging[0], trained)
            return freezing.merge(self.params, averaged)
        return self.params

    @property
    def eval_variables(self) -> Variables:
        """The variables that are evaluated: `eval_params` and the model's other collections."""
        return {"params": self.eval_params, **self.model_state}


def root_key(seed: int | jax.Array) -> Key:
    """Returns the key that all of a run's draws come from, of threefry whatever `jax_default_prng_impl` says.

    Under `vmap` other generators draw from the first key alone: a run beside others would not be its own.
    """
    return jax.random.key(seed, impl="threefry2x32")


def init_state(
    init_fn: Callable[[Key, Batch], Variables],
    tx: optax.GradientTransformation,
    batch: Batch,
    seed: int | jax.Array,
    *,
    frozen: freezing.Patterns = (),
    warm_start: Variables | None = None,
    keep_ema: bool = False,
    keep_best: bool = False,
    loss_scale: LossScale | None = None,
) -> TrainState:
    """Returns the state before the first step, a pure function of its arguments.

    Args:
      init_fn: from a key and a batch to the model's variables.
      tx: the optimizer.
      batch: an example batch; only shapes and dtypes matter.
      seed: of the initial parameters and of every later draw.
      frozen: patterns on the paths of the parameters that the optimizer never sees.
      warm_start: variables that replace the initial ones of the same path, such as a pretrained backbone.
      keep_ema: whether the state carries a moving average of the parameters.
      keep_best: whether the state carries the variables of the best evaluation.
      loss_scale: the initial loss scale, for float16.
    """
    init_key, rng = jax.random.split(root_key(seed))
    variables = dict(freezing.merge(init_fn(init_key, batch), warm_start or {}))
    params = variables.pop("params", {})
    trained, _ = freezing.split(params, frozen)
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        model_state=variables,
        opt_state=tx.init(trained),
        rng=rng,
        # A copy: the step donates its state, and one buffer cannot be donated twice.
        ema=jax.tree.map(jnp.copy, params) if keep_ema else None,
        loss_scale=loss_scale,
    )
    if not keep_best:
        return state
    return state.replace(best=jax.tree.map(jnp.copy, state.eval_variables))  # type: ignore[attr-defined]


def _is_schedule_free(node: object) -> bool:
    return isinstance(node, optax.contrib.ScheduleFreeState)


def num_params(params: Params) -> int:
    """Returns the number of scalars in a tree of arrays (or of their shapes)."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
