"""Run options that change the experiment: compression, precision, clipping, and how gradients are added."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import optax

from dl.errors import UserError
from dl.experiment import Experiment
from dl.methods.compression import from_record, records_of
from dl.precision import PRECISIONS, LossScale, computing_in
from dl.ranges import POSITIVE, check
from dl.runs.find import find_installed
from dl.runs.recorded_options import recorded_definition

DEFAULTS: Mapping[str, Any] = {"precision": "float32", "clip_norm": None, "reduction": "fast"}
# What a compressed run records beside them: the changes of its experiment, and which run it was made of.
OF_COMPRESSION = ("compression", "parent")

Find = Callable[[str], Callable[..., Experiment]]


def find_teacher(name: str) -> Callable[..., Experiment]:
    """Returns the function of an installed experiment."""
    return find_installed(name, "install the experiment of the teacher beside dl")


def with_run_options(
    experiment: Experiment, options: Mapping[str, Any], find: Find = find_teacher
) -> Experiment:
    """Returns the experiment with the compression, precision and gradient clipping of its run.

    Args:
      experiment: the experiment as its function returns it.
      options: the options of the run, such as those in run.json. Only `compression` and those of `DEFAULTS`
        are used.
      find: returns the function of an experiment that a teacher is of, for its name.

    Raises:
      UserError: a value is out of range, or a compression is unknown.
    """
    for record in records_of(options.get("compression")):
        teacher_of = functools.partial(_experiment_of, find=find)
        experiment = from_record(record, teacher_of).changed(experiment)
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


def _experiment_of(record: Mapping[str, Any], find: Find) -> Experiment:
    """Returns the experiment of a run for its name and its options, as a record of a teacher holds them."""
    name, options = record.get("experiment"), record.get("options")
    if not isinstance(name, str) or not isinstance(options, Mapping):
        raise UserError("the record of the teacher names no experiment and options; restore run.json")
    return with_run_options(recorded_definition(find(name), options, name).build(), options, find)
