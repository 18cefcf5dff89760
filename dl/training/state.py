"""The training state: arrays only, so that a checkpoint holds all that a resumed run needs."""

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
      step: the number of steps that are done, int32.
      params: the trained parameters.
      model_state: the other Linen collections, such as batch statistics.
      opt_state: the state of the optimizer.
      rng: a random key that never changes. Step s draws from `fold_in(rng, s)`.
      ema: the moving average of `params`. `None` if the experiment keeps none.
      loss_scale: the dynamic loss scale. `None` unless float16 is used.
      best: the variables of the best evaluation. `None` if the experiment does not keep them.
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
        """The parameters that are evaluated: their average, if the state or the optimizer keeps one.

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
        return {"params": self.eval_params, **freezing.without_constants(self.model_state)}

    @property
    def saved(self) -> "TrainState":
        """The state as checkpoints hold it, without constants."""
        return self.replace(model_state=freezing.without_constants(self.model_state))  # type: ignore[attr-defined]


def root_key(seed: int | jax.Array) -> Key:
    """Returns the threefry key that all random draws of a run come from.

    `jax_default_prng_impl` is ignored: under `vmap` other generators draw from the first key only, so a run
    in a population would differ from a single run.
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
      init_fn: returns the variables of the model for a key and a batch.
      tx: the optimizer.
      batch: a batch of examples; only its shapes and dtypes matter.
      seed: random seed of the initial parameters and of every later draw.
      frozen: regular expressions. Parameters whose path matches one are not given to the optimizer.
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
        # A copy is needed: the step donates its state, and one buffer cannot be donated twice.
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
