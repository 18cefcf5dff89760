"""Run options that change the experiment: precision, gradient clipping, and how gradients are added."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import optax

from dl.errors import UserError
from dl.experiment import Experiment
from dl.precision import PRECISIONS, LossScale, computing_in
from dl.ranges import POSITIVE, check

DEFAULTS: Mapping[str, Any] = {"precision": "float32", "clip_norm": None, "reduction": "fast"}


def with_run_options(experiment: Experiment, options: Mapping[str, Any]) -> Experiment:
    """Returns the experiment with the precision and the gradient clipping of the options of its run.

    Args:
      experiment: the experiment as its function returns it.
      options: the options of the run, such as those in run.json. Only those of `DEFAULTS` are used.

    Raises:
      UserError: a value is out of range.
    """
    asked = {**DEFAULTS, **{name: options[name] for name in DEFAULTS if name in options}}
    if asked["clip_norm"] is not None:
        check("clip_norm", asked["clip_norm"], POSITIVE)
        clip = optax.clip_by_global_norm(asked["clip_norm"])
        experiment = dataclasses.replace(experiment, tx=optax.chain(clip, experiment.tx))
    if asked["reduction"] not in ("fast", "exact"):
        raise UserError(f"reduction={asked['reduction']!r} is unknown; choose fast or exact")
    if asked["reduction"] == "exact":  # the default leaves the choice to the experiment
        experiment = dataclasses.replace(experiment, reduction="exact")
    if asked["precision"] == "float32":
        return experiment
    policy = PRECISIONS.get(asked["precision"]) if isinstance(asked["precision"], str) else None
    if policy is None:
        raise UserError(f"precision={asked['precision']!r} is unknown; choose one of {', '.join(PRECISIONS)}")
    return dataclasses.replace(
        experiment,
        task=computing_in(policy, experiment.task),
        loss_scale=experiment.loss_scale or (LossScale.create() if policy.needs_loss_scale else None),
    )


def changed(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options that differ from their defaults, which a run records."""
    return {name: options[name] for name, default in DEFAULTS.items() if options[name] != default}
