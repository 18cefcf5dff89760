"""What the options of a run change in its experiment: the precision, and the norm of the gradient."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import optax

from dl.errors import UserError
from dl.experiment import Experiment
from dl.precision import PRECISIONS, LossScale, computing_in
from dl.ranges import POSITIVE, check

DEFAULTS: Mapping[str, Any] = {"precision": "float32", "clip_norm": None}


def with_run_options(experiment: Experiment, options: Mapping[str, Any]) -> Experiment:
    """Returns the experiment with the precision and the clipping that the options of its run state.

    Args:
      experiment: as its function makes it.
      options: of the run, such as run.json has them; of them `precision` and `clip_norm`, where they stand.

    Raises:
      UserError: a value is out of range.
    """
    asked = {**DEFAULTS, **{name: options[name] for name in DEFAULTS if name in options}}
    if asked["clip_norm"] is not None:
        check("clip_norm", asked["clip_norm"], POSITIVE)
        clip = optax.clip_by_global_norm(asked["clip_norm"])
        experiment = dataclasses.replace(experiment, tx=optax.chain(clip, experiment.tx))
    if asked["precision"] == "float32":
        return experiment
    policy = PRECISIONS.get(asked["precision"]) if isinstance(asked["precision"], str) else None
    if policy is None:
        raise UserError(f"precision={asked['precision']!r} is none of {', '.join(PRECISIONS)}")
    return dataclasses.replace(
        experiment,
        task=computing_in(policy, experiment.task),
        loss_scale=experiment.loss_scale or (LossScale.create() if policy.needs_loss_scale else None),
    )


def changed(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those of the options that differ from their defaults: what a run records of them."""
    return {name: options[name] for name, default in DEFAULTS.items() if options[name] != default}
