"""What a learning curve is made of: an experiment with parts of its data, or with models of several sizes."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np

from dl.data.folds import take
from dl.data.order import random_order
from dl.data.splits import ChangedSplits, Splits
from dl.errors import UserError
from dl.experiment import Experiment
from dl.options import Options, parse_value
from dl.search import Interval, parse_space
from dl.summary import num_trained_parameters

_PART_KEY = (2, 2**63)  # apart from the keys of epochs, (seed, epoch), of splits and of folds


class Axis(NamedTuple):
    """What an error is measured over.

    Attributes:
      unit: of the sizes.
      label: of their axis.
      whole: what there can be twice of.
    """

    unit: str
    label: str
    whole: str


EXAMPLES = Axis("examples", "training examples", "data")
PARAMETERS = Axis("parameters", "trained parameters", "parameters")


class Point(NamedTuple):
    """What is trained at one place of a curve.

    Attributes:
      value: of what is varied, as text.
      size: in the unit of the axis.
      options: that its run is recorded with.
      experiment: of that size.
    """

    value: str
    size: int
    options: Options
    experiment: Experiment


class Plan(NamedTuple):
    """What is trained for a curve.

    Attributes:
      varied: the name of what has another value at each point.
      axis: what the curve goes over.
      points: the smallest first; where their data differ, each is made when it is asked for.
      experiment: with what they share: seed, notice and splits to evaluate on.
    """

    varied: str
    axis: Axis
    points: Iterable[Point]
    experiment: Experiment


def part_of(data: Splits, fraction: float) -> ChangedSplits:
    """Returns splits that train on the first rows of one fixed random order."""
    size = len(data.train)
    order = random_order(size, *_PART_KEY)
    rows = np.sort(order[: max(round(fraction * size), 1)])
    return ChangedSplits(data, {"train": take(data.train, rows)})


def plan_parts(experiment_fn: Callable[..., Experiment], options: Options, fractions: str) -> Plan:
    """Returns a curve over the number of training examples.

    Args:
      experiment_fn: the experiment.
      options: of it.
      fractions: of its training split, with commas between.

    Raises:
      UserError: a mistake in the fractions, or in the options.
    """
    numbers = _numbers(fractions)
    experiment = experiment_fn(**options)

    def points() -> Iterator[Point]:
        for fraction in numbers:
            part = dataclasses.replace(experiment, data=part_of(experiment.data, fraction))
            yield Point(f"{fraction:g}", len(part.data.train), {**options, "fraction": fraction}, part)

    return Plan("fraction", EXAMPLES, points(), experiment)


def plan_models(experiment_fn: Callable[..., Experiment], options: Options, over: str) -> Plan:
    """Returns a curve over the number of trained parameters; of each model only shapes are made here.

    Args:
      experiment_fn: the experiment.
      options: of it.
      over: the option that takes several values, as NAME=A,B,C or NAME=log:LOW:HIGH:NUM.

    Raises:
      UserError: a mistake in `over` or the options; two models are of one size, or their data differ.
    """
    [(name, dimension)] = parse_space([over], partial(parse_value, experiment_fn)).items()
    if isinstance(dimension, Interval) and dimension.num is None:
        raise UserError(f"--over {over!r} is a range; write behind it how many values, as in {over}:5")
    values = dimension.grid(name)
    if len(values) < 3:
        raise UserError(f"--over {over!r} must have three or more values; a power law takes as many")
    points = []
    for value in values:
        own = {**options, name: value}
        experiment = experiment_fn(**own)
        points.append(Point(str(value), num_trained_parameters(experiment), own, experiment))
    points.sort(key=lambda point: point.size)
    for one, other in itertools.pairwise(points):
        pair = f"{name}={one.value} and {name}={other.value}"
        if one.size == other.size:
            raise UserError(
                f"{pair} both train {one.size:,} parameters; --over takes an option that changes the size of "
                "the model"
            )
        if one.experiment.data.identity != other.experiment.data.identity:
            raise UserError(f"{pair} have other data; --over takes an option that changes the model alone")
    return Plan(name, PARAMETERS, points, points[0].experiment)


def _numbers(text: str) -> list[float]:
    try:
        fractions = sorted({float(part) for part in text.split(",")})
    except ValueError:
        raise UserError(
            f"--fractions {text!r} is not understood; write numbers with commas between"
        ) from None
    if len(fractions) < 3 or not 0 < fractions[0] <= fractions[-1] <= 1:
        raise UserError(
            f"--fractions {text!r} must be three or more different numbers, above 0 and at most 1"
        )
    return fractions
