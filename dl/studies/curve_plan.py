"""The plan of a learning curve: an experiment with parts of its data, or with models of several sizes."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from dl.data.part import part_of, part_size
from dl.data.source import ArraySource
from dl.errors import UserError
from dl.experiment import Experiment
from dl.option_types import Options
from dl.runs.definition import Definition
from dl.studies.runs import check_options
from dl.studies.search import Dimension, Interval, as_space
from dl.training.batches import MAX_PADDED_BATCH
from dl.training.summary import num_trained_parameters


class Axis(NamedTuple):
    """The horizontal axis of a learning curve.

    Attributes:
      unit: the unit of the sizes.
      label: the label of the axis.
      whole: the name of the largest size, in text about twice this size.
    """

    unit: str
    label: str
    whole: str


EXAMPLES = Axis("examples", "training examples", "data")
PARAMETERS = Axis("parameters", "trained parameters", "parameters")


class Point(NamedTuple):
    """One point of a curve, which is an experiment to train.

    Attributes:
      value: the value of the varied option, as text.
      size: the size in the unit of the axis.
      definition: the definition of the experiment of that size.
    """

    value: str
    size: int
    definition: Definition


class Plan(NamedTuple):
    """The experiments that are trained for a curve.

    Attributes:
      varied: the name of the option that has another value at each point.
      axis: the horizontal axis.
      points: the points, the smallest first. If their data differ, each point is made on request.
      experiment: an experiment with the shared seed, notice and evaluation splits.
    """

    varied: str
    axis: Axis
    points: Iterable[Point]
    experiment: Experiment


def plan_parts(
    experiment_fn: Callable[..., Experiment], options: Options, fractions: Sequence[float]
) -> Plan:
    """Returns a curve over the number of training examples.

    Args:
      experiment_fn: the function of the experiment.
      options: the options of the function.
      fractions: the fractions of the training split, at least three.

    Raises:
      UserError: the fractions or options have a mistake, or parts have the same size or are too small.
    """
    numbers = _checked(fractions)
    whole = Definition(experiment_fn, options)
    experiment = whole.build()
    _check_parts(experiment, numbers)

    def points() -> Iterator[Point]:
        for fraction in numbers:
            data = part_of(experiment.data, fraction, experiment.batch_size)
            part = whole.changed({"fraction": fraction}, partial(dataclasses.replace, data=data))
            yield Point(_text(fraction), len(data.train), part)

    return Plan("fraction", EXAMPLES, points(), experiment)


def _check_parts(experiment: Experiment, fractions: Sequence[float]) -> None:
    """Raises UserError for parts that are too small or of the same size."""
    train, batch_size = experiment.data.train, experiment.batch_size
    sizes = [part_size(len(train), fraction, batch_size) for fraction in fractions]
    smallest = f"the fraction {_text(fractions[0])} of {len(train):,} examples is {sizes[0]:,}"
    if sizes[0] < 1:
        raise UserError(f"{smallest}; choose larger fractions")
    for (one, size), (other, also) in itertools.pairwise(zip(fractions, sizes, strict=True)):
        if size == also:
            batches = f", in whole batches of {batch_size}" if size >= batch_size > 1 else ""
            raise UserError(
                f"the fractions {_text(one)} and {_text(other)} of {len(train):,} examples are both "
                f"{size:,}{batches}; choose fractions that differ more"
            )
    if sizes[0] < batch_size > MAX_PADDED_BATCH:
        raise UserError(
            f"{smallest}, fewer than a batch, {batch_size:,}; choose larger fractions or a smaller batch"
        )
    labels = train.arrays.get("label") if isinstance(train, ArraySource) else None
    if labels is not None and labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer):
        num_classes = len(np.unique(labels))
        if sizes[0] < num_classes:
            raise UserError(f"{smallest}, fewer than the {num_classes} classes; choose larger fractions")


def plan_models(
    experiment_fn: Callable[..., Experiment], options: Options, over: Mapping[str, Dimension | Sequence[Any]]
) -> Plan:
    """Returns a curve over the number of trained parameters. Only the shapes of each model are computed here.

    Args:
      experiment_fn: the function of the experiment.
      options: the options of the function.
      over: the option that takes several values, with at least three of them.

    Raises:
      UserError: `over` or the options have a mistake, two models have the same size, or their data differ.
    """
    check_options(experiment_fn, over)
    if len(over) != 1:
        raise UserError(f"over must name one option, not {', '.join(over) or 'none'}")
    [(name, dimension)] = as_space(over).items()
    if isinstance(dimension, Interval) and dimension.num is None:
        raise UserError(
            f"over {name} is a range, {dimension.low:g} to {dimension.high:g}; add the number of values"
        )
    values = dimension.grid(name)
    if len(values) < 3:
        raise UserError(f"over {name} has {len(values)} values; a power law needs at least three")
    points = []
    for value in values:
        definition = Definition(experiment_fn, {**options, name: value})
        points.append(Point(str(value), num_trained_parameters(definition.build()), definition))
    points.sort(key=lambda point: point.size)
    for one, other in itertools.pairwise(points):
        pair = f"{name}={one.value} and {name}={other.value}"
        if one.size == other.size:
            raise UserError(
                f"{pair} both train {one.size:,} parameters; over takes an option that changes the size of "
                "the model"
            )
        if one.definition.build().data.identity != other.definition.build().data.identity:
            raise UserError(f"{pair} have other data; over takes an option that changes the model alone")
    return Plan(name, PARAMETERS, points, points[0].definition.build())


def _checked(fractions: Sequence[float]) -> list[float]:
    are_possible = all(0 < fraction <= 1 for fraction in fractions)  # False for NaN
    if not are_possible or len(set(fractions)) < max(len(fractions), 3):
        shown = ", ".join(map(_text, fractions))
        raise UserError(
            f"the fractions {shown} must be three or more different numbers, above 0 and at most 1"
        )
    return sorted(fractions)


def _text(fraction: float) -> str:
    """Returns a fraction as text with as few digits as possible."""
    return f"{fraction:g}" if float(f"{fraction:g}") == fraction else repr(fraction)
