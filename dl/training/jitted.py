"""The computation of a step as jitted functions, with the shardings of their arguments and results."""

import jax
from jax.sharding import Mesh

from dl.metrics import MetricTable
from dl.sharding import batch_sharding, replicated
from dl.training.population import Population
from dl.training.single import SINGLE, Single
from dl.training.state import TrainState
from dl.training.step import EvalStep, StepConfig, TrainStep, evaluate_batch, update_state
from dl.types import Batch, Variables


def make_train_step(
    config: StepConfig, mesh: Mesh, shardings: TrainState, population: Population | Single = SINGLE
) -> TrainStep:
    """Returns the jitted step `(state, batch) -> (state, metrics)`. The input state is donated.

    Args:
      config: the parts of a step. The shardings make its loss a mean over all devices.
      mesh: the devices.
      shardings: the sharding of each leaf of the state, see `sharding.state_shardings`.
      population: the runs that the step trains.
    """

    def update(config: StepConfig, state: TrainState, batch: Batch) -> tuple[TrainState, MetricTable]:
        state, metrics = update_state(config, state, batch)
        return state, MetricTable.of(metrics)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, MetricTable]:
        return population.update(update, config)(state, batch)

    return jax.jit(
        train_step,
        in_shardings=(shardings, population.batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )


def make_eval_step(
    config: StepConfig, mesh: Mesh, shardings: Variables, population: Population | Single = SINGLE
) -> EvalStep:
    """Returns the jitted step `(variables, batch) -> metrics`, without randomness or updates.

    The metrics include what each example adds to them.

    Args:
      config: the parts of a step, as in training.
      mesh: the devices.
      shardings: the sharding of each leaf of the variables.
      population: the runs that the step evaluates. They share the batch.
    """

    def evaluate(variables: Variables, batch: Batch) -> MetricTable:
        return MetricTable.of(evaluate_batch(config, variables, batch), len(batch["mask"]))

    def eval_step(variables: Variables, batch: Batch) -> MetricTable:
        return population.evaluate(evaluate)(variables, batch)

    return jax.jit(eval_step, in_shardings=(shardings, batch_sharding(mesh)), out_shardings=replicated(mesh))
