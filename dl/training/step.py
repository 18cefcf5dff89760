"""The train step and the eval step: pure functions, compiled once, sharded by data.

Nothing here knows a model, a data set or a device count.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dl import freezing
from dl.flops import input_scope
from dl.gradients import mean_gradient
from dl.metrics import Mean, MetricTable
from dl.precision import all_finite
from dl.sharding import batch_sharding
from dl.training.population import Members, Traced, over_members
from dl.training.state import TrainState
from dl.types import (
    Augment,
    Aux,
    Batch,
    GradFn,
    Key,
    LossFn,
    Metrics,
    ModelState,
    Params,
    Preprocess,
    Variables,
)

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, MetricTable]]
EvalStep = Callable[[Variables, Batch], MetricTable]


def with_inputs(loss_fn: LossFn, preprocess: Preprocess | None, augment: Augment | None = None) -> LossFn:
    """Returns `loss_fn` on batches that were first decoded and, in training, augmented.

    Args:
      loss_fn: sees the batch after both.
      preprocess: from a stored batch to what the model eats; no randomness.
      augment: from a key and ONE example to an example; never called in evaluation. The key is
        `fold_in(step key, example index)`: what an example sees depends neither on how the batch is
        split nor on the number of devices.
    """

    def loss_on_stored(
        params: Params, model_state: ModelState, batch: Batch, key: Key | None
    ) -> tuple[Mean, Aux]:
        if preprocess is not None:
            with input_scope():
                batch = preprocess(batch)
        if augment is not None and key is not None:
            augment_key, key = jax.random.split(key)
            with input_scope():
                keys_B = jax.vmap(jax.random.fold_in, (None, 0))(augment_key, batch["index"])
                batch = jax.vmap(augment)(keys_B, batch)
        return loss_fn(params, model_state, batch, key)

    return loss_on_stored


def update_state(
    state: TrainState,
    batch: Batch,
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    grad_fn: GradFn = mean_gradient,
    ema_decay: float | None = None,
    frozen: freezing.Patterns = (),
) -> tuple[TrainState, Metrics]:
    """One step of training, unjitted: for `jit`, for `vmap` over members, for tests.

    Parameters whose paths `frozen` matches, and the statistics of their batch norms, stay as they are.

    Returns:
      The next state, and the metrics of the loss with `gradient_norm` and, where the optimizer's state
      tells it, `learning_rate`.
    """
    scale = None if state.loss_scale is None else state.loss_scale.scale

    trained, fixed = freezing.split(state.params, frozen)

    def scaled_loss(trained: Params, *args):  # type: ignore[no-untyped-def]
        with freezing.frozen_norms(state.params, frozen):
            loss, aux = loss_fn(freezing.merge(trained, fixed), *args)
        return (loss if scale is None else loss.times(scale)), aux

    key = jax.random.fold_in(state.rng, state.step)
    (loss, aux), gradient = grad_fn(scaled_loss)(trained, state.model_state, batch, key)
    if scale is not None:
        loss, gradient = jax.tree.map(lambda x: x / scale, (loss, gradient))
    # Some transformations follow the loss, such as a rate that falls on a plateau; the others ignore it.
    tx = optax.with_extra_args_support(tx)
    updates, opt_state = tx.update(gradient, state.opt_state, trained, value=loss)
    trained = optax.apply_updates(trained, updates)
    next_state = state.replace(  # type: ignore[attr-defined]
        step=state.step + 1,
        params=freezing.merge(trained, fixed),
        model_state=aux.model_state,
        opt_state=opt_state,
    )
    if ema_decay is not None:
        # The ramp forgets the initial parameters quickly; without it they would dominate for
        # 1/(1 - decay) steps.
        decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
        before, _ = freezing.split(state.ema, frozen)
        average = optax.incremental_update(trained, before, 1.0 - decay)
        next_state = next_state.replace(ema=freezing.merge(average, fixed))
    metrics = {**aux.metrics, "gradient_norm": _scalar(optax.tree.norm(gradient))}
    rates = optax.tree_utils.tree_get_all_with_path(opt_state, "learning_rate")
    if rates:
        metrics["learning_rate"] = _scalar(rates[0][1])
    if state.loss_scale is not None and scale is not None:
        is_finite = all_finite(gradient)
        kept = state.replace(step=next_state.step)  # type: ignore[attr-defined]
        next_state = jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), next_state, kept)
        next_state = next_state.replace(loss_scale=state.loss_scale.update(is_finite))
        metrics["loss_scale"] = _scalar(scale)
    return next_state, metrics


def make_train_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    shardings: TrainState,
    *,
    grad_fn: GradFn = mean_gradient,
    ema_decay: float | None = None,
    frozen: freezing.Patterns = (),
    members: Members | None = None,
    is_unrolled: bool = False,
) -> TrainStep:
    """Returns the compiled step `(state, batch) -> (state, metrics)`. The state given is consumed.

    Args:
      loss_fn: the loss of the whole batch; the mean over devices follows from its sharding.
      tx: the optimizer; one that takes extra arguments gets the loss as `value`.
      mesh: the devices.
      shardings: of the state, leaf by leaf, as `sharding.state_shardings` gives them.
      grad_fn: how the loss becomes a gradient.
      ema_decay: of the moving average of the parameters, where the state keeps one.
      frozen: patterns on the paths of parameters that stay as they are.
      members: the runs along a leading axis that state and batch carry; the metrics carry it too. None: there
        is no such axis.
      is_unrolled: as of `over_members`.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, MetricTable]:
        state, metrics = update_state(state, batch, loss_fn, tx, grad_fn, ema_decay, frozen)
        return state, MetricTable.of(metrics)

    def train_members(state: TrainState, batch: Batch) -> tuple[TrainState, MetricTable]:
        assert members is not None

        def train_one(state: TrainState, batch: Batch, options: Traced) -> tuple[TrainState, MetricTable]:
            own = members.tx(options, tx)
            state, metrics = update_state(state, batch, loss_fn, own, grad_fn, ema_decay, frozen)
            return state, MetricTable.of(metrics)

        return over_members(train_one, len(members), is_unrolled)(state, batch, members.arrays[1])

    return jax.jit(
        train_step if members is None else train_members,
        in_shardings=(shardings, batch_sharding(mesh, None if members is None else len(members))),
        out_shardings=(shardings, NamedSharding(mesh, PartitionSpec())),
        donate_argnums=0,
    )


def make_eval_step(
    loss_fn: LossFn,
    mesh: Mesh,
    shardings: Variables,
    *,
    num_members: int | None = None,
    is_unrolled: bool = False,
) -> EvalStep:
    """Returns the compiled step `(variables, batch) -> metrics`, without randomness or updates.

    The metrics tell what each example adds to them.

    Args:
      loss_fn: as in training.
      mesh: the devices.
      shardings: of the variables, leaf by leaf.
      num_members: the size of a leading axis of the variables; the members share the batch.
      is_unrolled: as of `over_members`.
    """

    def eval_step(variables: Variables, batch: Batch) -> MetricTable:
        model_state = dict(variables)
        _, aux = loss_fn(model_state.pop("params"), model_state, batch, None)
        return MetricTable.of(aux.metrics, len(batch["mask"]))

    def eval_members(variables: Variables, batch: Batch) -> MetricTable:
        assert num_members is not None
        return over_members(lambda one: eval_step(one, batch), num_members, is_unrolled)(variables)

    return jax.jit(
        eval_step if num_members is None else eval_members,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=NamedSharding(mesh, PartitionSpec()),
    )


def _scalar(value: jax.Array) -> Mean:
    return Mean(jnp.asarray(value, jnp.float32), jnp.float32(1.0))
