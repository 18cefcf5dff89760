"""Fingerprints of experiments, which tell whether they differ only in their optimizers."""

import hashlib
import re
from typing import Any

import jax
import numpy as np

from dl.errors import UserError
from dl.experiment import Experiment, stored_batch
from dl.metrics import Direction
from dl.stopping import Directions, sign_of
from dl.training.state import root_key
from dl.training.step import StepConfig
from dl.types import Variables

_COMPARED = (
    *("num_steps", "batch_size", "frozen", "keep_best", "stop_at", "ema_decay", "loss_scale"),
    *("sharding_rules", "eval_batch_size", "eval_every", "eval_at_start"),
)


def fingerprint(experiment: Experiment) -> str | None:
    """Returns a digest of an experiment without its optimizer and seed: data, model, loss, gradient, steps.

    It covers the traced computation with its constants, such as a number that a loss or an augmentation
    closes over. `None` if there is no such digest, as for an experiment with a warm start.
    """
    if experiment.warm_start is not None:
        return None
    content = hashlib.sha256(repr(experiment.data.identity).encode())
    content.update(repr([getattr(experiment, name) for name in _COMPARED]).encode())
    content.update(experiment.task.input_name.encode())
    closed = jax.make_jaxpr(_make_pass(experiment))(root_key(0), stored_batch(experiment))
    content.update(re.sub(r"0x[0-9a-f]+", "", str(closed.jaxpr)).encode())  # without addresses
    for constant in closed.consts:
        content.update(np.asarray(constant).tobytes())
    return content.hexdigest()


def metric_directions(experiment: Experiment) -> Directions:
    """Returns the metrics of an evaluation: names, and whether small or large values are good."""
    aux = jax.eval_shape(_make_pass(experiment), root_key(0), stored_batch(experiment))[1]
    return {name: mean.better for name, mean in aux.metrics.items()}


def direction_of(metric: str, directions: Directions, mode: Direction | None) -> Direction:
    """Returns whether the smallest or the largest value of a metric is best.

    Raises:
      UserError: neither the metric nor `mode` states the direction.
    """
    try:
        return "max" if sign_of(metric, directions, mode) > 0 else "min"
    except UserError:
        raise UserError(
            f"metric={metric!r} does not state whether small or large values are good; add --mode min or "
            "--mode max"
        ) from None


def _make_pass(experiment: Experiment) -> Any:
    config = StepConfig.of(experiment)

    def initial_variables_training_and_evaluation(key: Any, batch: Any) -> Any:
        variables: Variables = experiment.init(key, batch)
        state = {name: tree for name, tree in variables.items() if name != "params"}
        params = variables.get("params", {})
        _, in_evaluation = config.loss_fn(params, state, batch, None)
        return config.grad_fn(config.loss_fn)(params, state, batch, key), in_evaluation, variables

    return initial_variables_training_and_evaluation
