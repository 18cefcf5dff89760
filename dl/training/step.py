"""The computation of one step: pure, unjitted functions of a state and a batch.

They do not depend on a certain model, data set or number of devices. `program` compiles them.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from dl import freezing
from dl.experiment import Experiment
from dl.flops import input_scope
from dl.gradients import mean_gradient
from dl.metrics import Mean, MetricTable
from dl.precision import LossScale, all_finite
from dl.training.state import TrainState, init_state
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

AUGMENT_KEYS = "augment_keys"  # feature of a training batch: the key of the augmentation of each example

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, MetricTable]]
EvalStep = Callable[[Variables, Batch], MetricTable]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepConfig:
    """The parts of a step: one record that is made once from an experiment.

    Attributes:
      init_fn: returns the variables of the model for a key and a stored batch.
      loss_fn: the mean loss over a stored batch. With a key it also augments the batch, as in training.
      tx: the optimizer. If it takes extra arguments, it gets the loss as `value`.
      grad_fn: makes a function that returns the loss and its gradient from the loss function.
      frozen: regular expressions. Parameters whose path matches one, and the statistics of their norm layers,
        are not updated.
      ema_decay: the decay of the moving average of the parameters. `None` means that there is no average.
      loss_scale: the initial loss scale, for float16.
      keeps_best: whether the state carries the variables of the best evaluation.
      augments: whether `loss_fn` augments the examples.
    """

    init_fn: Callable[[Key, Batch], Variables]
    loss_fn: LossFn
    tx: optax.GradientTransformation
    grad_fn: GradFn = mean_gradient
    frozen: freezing.Patterns = ()
    ema_decay: float | None = None
    loss_scale: LossScale | None = None
    keeps_best: bool = False
    augments: bool = False

    @classmethod
    def of(cls, experiment: Experiment) -> "StepConfig":
        """Returns the parts of a step of the experiment."""
        return cls(
            init_fn=experiment.init,
            loss_fn=with_inputs(experiment.task.loss, experiment.preprocess, experiment.augment),
            tx=experiment.tx,
            grad_fn=experiment.grad_fn,
            frozen=experiment.frozen,
            ema_decay=experiment.ema_decay,
            loss_scale=experiment.loss_scale,
            keeps_best=experiment.keep_best is not None,
            augments=experiment.augment is not None,
        )

    def init(self, batch: Batch, seed: int | jax.Array, warm_start: Variables | None = None) -> TrainState:
        """Returns the state before the first step; see `init_state`."""
        return init_state(
            self.init_fn,
            self.tx,
            batch,
            seed,
            frozen=self.frozen,
            warm_start=warm_start,
            keep_ema=self.ema_decay is not None,
            keep_best=self.keeps_best,
            loss_scale=self.loss_scale,
        )


def with_inputs(loss_fn: LossFn, preprocess: Preprocess | None, augment: Augment | None = None) -> LossFn:
    """Returns `loss_fn` with preprocessing and, in training, augmentation of its batches.

    Args:
      loss_fn: the loss of a batch after preprocessing and augmentation.
      preprocess: returns the input of the model for a stored batch, without randomness.
      augment: returns an augmented example for a key and ONE example. It is not called in evaluation. The
        key is `fold_in(step key, example index)`. It is the feature `AUGMENT_KEYS` of the batch if
        `update_state` has drawn it, so the augmentation does not depend on how the batch is split or on the
        number of devices.
    """

    def loss_on_stored(
        params: Params, model_state: ModelState, batch: Batch, key: Key | None
    ) -> tuple[Mean, Aux]:
        if augment is not None and key is not None and AUGMENT_KEYS not in batch:
            batch, key = _with_augment_keys(batch, key)
        batch = dict(batch)
        keys_B = batch.pop(AUGMENT_KEYS, None)
        with input_scope():
            if preprocess is not None:
                batch = preprocess(batch)
            if augment is not None and keys_B is not None:
                batch = jax.vmap(augment)(keys_B, batch)
        return loss_fn(params, model_state, batch, key)

    return loss_on_stored


def _with_augment_keys(batch: Batch, key: Key) -> tuple[Batch, Key]:
    """Returns the batch with the key of each example's augmentation, and a key for everything else."""
    augment_key, key = jax.random.split(key)
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(augment_key, batch["index"])
    return {**batch, AUGMENT_KEYS: keys_B}, key


def update_state(config: StepConfig, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    """Computes one training step.

    The function is not jitted, so that `jit`, `vmap` over a population and tests can use it.

    Returns:
      The next state, and the metrics of the loss with `gradient_norm` and, if the state of the optimizer
      contains it, `learning_rate`.
    """
    frozen = config.frozen
    scale = None if state.loss_scale is None else state.loss_scale.scale
    trained, fixed = freezing.split(state.params, frozen)
    constants = freezing.constants_of(state.model_state)

    def scaled_loss(trained: Params, model_state: ModelState, *args):  # type: ignore[no-untyped-def]
        with freezing.frozen_norms(state.params, frozen):
            loss, aux = config.loss_fn(freezing.merge(trained, fixed), {**model_state, **constants}, *args)
        aux = aux._replace(model_state=freezing.without_constants(aux.model_state))
        return (loss if scale is None else loss.times(scale)), aux

    key = jax.random.fold_in(state.rng, state.step)
    if config.augments:  # here, because a `grad_fn` may split the batch and draw a key for each part
        batch, key = _with_augment_keys(batch, key)
    model_state = freezing.without_constants(state.model_state)
    (loss, aux), gradient = config.grad_fn(scaled_loss)(trained, model_state, batch, key)
    if scale is not None:
        loss, gradient = jax.tree.map(lambda x: x / scale, (loss, gradient))
    # Some transformations use the loss, such as a learning rate that falls on a plateau; the others ignore
    # it.
    tx = optax.with_extra_args_support(config.tx)
    updates, opt_state = tx.update(gradient, state.opt_state, trained, value=loss)
    trained = optax.apply_updates(trained, updates)
    next_state = state.replace(  # type: ignore[attr-defined]
        step=state.step + 1,
        params=freezing.merge(trained, fixed),
        model_state={**aux.model_state, **constants},
        opt_state=opt_state,
    )
    if config.ema_decay is not None:
        # The decay grows at the start, so that the average forgets the initial parameters quickly. Otherwise
        # they would dominate for 1/(1 - decay) steps.
        decay = jnp.minimum(config.ema_decay, (1.0 + state.step) / (10.0 + state.step))
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


def evaluate_batch(config: StepConfig, variables: Variables, batch: Batch) -> Metrics:
    """Returns the metrics of a stored batch, without randomness or updates."""
    model_state = dict(variables)
    _, aux = config.loss_fn(model_state.pop("params"), model_state, batch, None)
    return aux.metrics


def _scalar(value: jax.Array) -> Mean:
    return Mean(jnp.asarray(value, jnp.float32), jnp.float32(1.0))
