"""Trials in one program: those that differ only in hyperparameters of the optimizer, or in their seeds."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from dl.option_types import Options
from dl.runs.definition import Definition
from dl.studies.fingerprint import fingerprint
from dl.studies.folder import is_same
from dl.studies.search import Point
from dl.training.population import Population


def groups_of(points: Mapping[int, Point], define: Callable[[int], Definition], size: int) -> list[list[int]]:
    """Returns groups of trials that can share one program.

    Args:
      points: the searched options of each trial.
      define: returns the definition of a trial.
      size: the largest number of trials in a group.
    """
    candidates: dict[str, list[int]] = {}
    for trial, point in points.items():
        rest = {name: value for name, value in point.items() if not _may_vary(name, value)}
        candidates.setdefault(json.dumps(rest, default=str), []).append(trial)
    groups: dict[str, list[int]] = {}
    for trial in (trial for group in candidates.values() if len(group) > 1 for trial in group):
        try:
            definition = define(trial)
            experiment = definition.build()
            kind = fingerprint(experiment)
        except Exception:  # the trial raises the error again
            continue
        seed = definition.options.get("seed", experiment.seed)
        # Together they would stop only when the last of them has reached its target.
        if kind and experiment.stop_at is None and experiment.seed == seed:
            groups.setdefault(kind, []).append(trial)
    chunks = [group[at : at + size] for group in groups.values() for at in range(0, len(group), size)]
    return [chunk for chunk in chunks if len(chunk) > 1]


def in_one_program(
    define: Callable[[Options], Definition], options: Sequence[Options], searched: Iterable[str]
) -> tuple[Definition, Population]:
    """Returns the definition of the run that trains a group of trials, and its population.

    Args:
      define: returns the definition of a trial with its options.
      options: all options of each trial.
      searched: the names of the searched options.
    """
    first = options[0]
    numbers = [name for name in searched if isinstance(first[name], float)]
    varied = [name for name in numbers if any(not is_same(own[name], first[name]) for own in options)]
    definition = define(first)
    base = definition.build()
    population = Population(
        tuple(own.get("seed", base.seed) for own in options),
        {name: tuple(own[name] for own in options) for name in varied},
        (lambda own: definition.fn(**{**first, **own}).tx) if varied else None,
    )
    members = [population.describe(k) for k in range(len(population))]
    return definition.changed({"members": members}), population


def _may_vary(name: str, value: Any) -> bool:
    return isinstance(value, float) or name == "seed"
