"""Search spaces and search methods for options: grids, random draws, successive halving, TPE."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dl.errors import UserError
from dl.studies.folder import plain

Method = Literal["random", "grid", "halving", "tpe"]

REDUCTION = 3  # the best third of a rung of successive halving continues (Li et al. 2018, 3.6)
_RANDOM_KEY = 2**62  # differs from the keys of epochs, (seed, epoch)
_DIGITS = 6  # significant digits of a drawn number, so that a user can type it


@dataclass(frozen=True)
class Choices:
    """An option that takes one of a few values."""

    values: tuple[Any, ...]

    def at(self, place: float) -> Any:
        """Returns the value at a place in [0, 1)."""
        return self.values[int(place * len(self.values))]

    def grid(self, name: str) -> tuple[Any, ...]:
        """Returns all values."""
        return self.values


@dataclass(frozen=True)
class Interval:
    """A number between two bounds, both included; a whole number if they are whole numbers.

    Attributes:
      low: the lower bound.
      high: the upper bound.
      is_log: whether equal ratios are equally likely, rather than equal differences.
      num: the number of values in a grid. `None` if the interval is not for a grid.
    """

    low: float
    high: float
    is_log: bool = False
    num: int | None = None

    @property
    def is_whole(self) -> bool:
        return isinstance(self.low, int)

    def at(self, place: float) -> float:
        """Returns the value at a place in [0, 1)."""
        # The positions of each integer have equal length.
        high = self.high + 1 if self.is_whole else self.high
        if self.is_log:
            value = self.low * (high / self.low) ** place
        else:
            value = self.low + place * (high - self.low)
        return self._fit(math.floor(value) if self.is_whole else value)

    def grid(self, name: str) -> tuple[float, ...]:
        """Returns `num` values; raises UserError if it is `None`."""
        if self.num is None:
            text = f"{'log:' if self.is_log else ''}{self.low:g}:{self.high:g}"
            raise UserError(
                f"{name}={text} is a range, and a grid needs a number of values; write {name}={text}:5"
            )
        space = np.geomspace if self.is_log else np.linspace
        values = space(self.low, self.high, self.num).tolist()
        return tuple(dict.fromkeys(self._fit(round(value) if self.is_whole else value) for value in values))

    def _fit(self, value: float) -> float:
        if not self.is_whole:
            value = float(f"{value:.{_DIGITS}g}")
        return min(max(value, self.low), self.high)


Dimension = Choices | Interval
Space = Mapping[str, Dimension]
Point = dict[str, Any]


def as_space(values: Mapping[str, "Dimension | Sequence[Any]"]) -> dict[str, Dimension]:
    """Returns a space of dimensions. The items of a plain sequence become choices.

    Raises:
      UserError: the space is empty, or a sequence is.
    """
    if not values:
        raise UserError("there is nothing to search; give at least one option and its values")
    space: dict[str, Dimension] = {}
    for name, dimension in values.items():
        space[name] = dimension if isinstance(dimension, Choices | Interval) else Choices(tuple(dimension))
        if space[name] == Choices(()):
            raise UserError(f"{name} has no values to search; give at least one")
    return space


def grid_points(space: Space) -> list[Point]:
    """Returns all combinations of the values; the last option changes fastest."""
    values = [dimension.grid(name) for name, dimension in space.items()]
    return [dict(zip(space, point, strict=True)) for point in itertools.product(*values)]


def random_points(space: Space, num_points: int, seed: int) -> list[Point]:
    """Returns independent draws (Bergstra & Bengio 2012). More points begin with the same points."""
    words = np.random.Philox(key=(seed, _RANDOM_KEY)).random_raw(num_points * len(space))
    places = (words >> np.uint64(11)).reshape(num_points, len(space)) / 2.0**53
    return [
        {name: dimension.at(place) for (name, dimension), place in zip(space.items(), row, strict=True)}
        for row in places.tolist()
    ]


def rungs(num_points: int, budget: int) -> list[tuple[int, int]]:
    """Returns the number of points and the budget of each rung (Jamieson & Talwalkar 2016, algorithm 1).

    The last rung has the whole budget. Each earlier rung has a third of the next budget, and three times its
    points.
    """
    last = 0
    while REDUCTION ** (last + 1) <= min(num_points, budget):
        last += 1
    return [(num_points // REDUCTION**rung, budget // REDUCTION ** (last - rung)) for rung in range(last + 1)]


class Tpe:
    """Points that a tree-structured Parzen estimator proposes (Bergstra et al. 2011), by Optuna.

    The same seed and the same values of the trials give the same points. A single process asks for them in
    turn (`points`). Workers ask for the point of any trial (`propose`): then a point depends on the number of
    the trial and on the trials that have finished until then.
    """

    def __init__(self, space: Space, seed: int, sign: float):
        """Starts the search; `sign` is 1 if large values are good, -1 if small ones are."""
        try:
            import optuna
        except ImportError:
            raise UserError(
                "the method tpe needs Optuna; run pip install 'dl[search]', or choose random, grid or halving"
            ) from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna = optuna
        self._failed = optuna.trial.TrialState.FAIL
        self._direction = "maximize" if sign > 0 else "minimize"
        self._seed = seed
        self._study = self._new_study(seed)
        self._space = space
        self._distributions = {
            # Optuna gets the positions of the values, because it cannot store every type, such as a path.
            name: optuna.distributions.CategoricalDistribution(range(len(dimension.values)))
            if isinstance(dimension, Choices)
            else optuna.distributions.IntDistribution(dimension.low, dimension.high, dimension.is_log)
            if dimension.is_whole
            else optuna.distributions.FloatDistribution(dimension.low, dimension.high, dimension.is_log)
            for name, dimension in space.items()
        }

    def points(self, num_points: int) -> Iterator[tuple[Point, Callable[[float | None], None]]]:
        """Yields points, each with the function that must be called with its value (`None` if it failed)."""
        for _ in range(num_points):
            trial = self._study.ask(self._distributions)

            def tell(value: float | None, trial: Any = trial) -> None:
                if value is None:
                    self._study.tell(trial, state=self._failed)
                else:
                    self._study.tell(trial, value)

            yield {name: self._value(name, value) for name, value in trial.params.items()}, tell

    def propose(self, trial: int, finished: Sequence[Mapping[str, Any]]) -> Point:
        """Returns a point from the `options` (JSON values) and the `value` (None if it failed) of trials."""
        [seed] = np.random.SeedSequence((self._seed, trial)).generate_state(1).tolist()
        study = self._new_study(seed)
        for row in finished:
            end = {"state": self._failed} if row["value"] is None else {"value": row["value"]}
            drawn = {name: self._drawn(name, value) for name, value in row["options"].items()}
            study.add_trial(
                self._optuna.trial.create_trial(params=drawn, distributions=self._distributions, **end)
            )
        drawn = study.ask(self._distributions).params
        return {name: self._value(name, value) for name, value in drawn.items()}

    def point(self, options: Mapping[str, Any]) -> Point:
        """Returns the point with these options, which are JSON values."""
        return {name: self._value(name, self._drawn(name, value)) for name, value in options.items()}

    def _new_study(self, seed: int) -> Any:
        sampler = self._optuna.samplers.TPESampler(seed=seed)
        return self._optuna.create_study(direction=self._direction, sampler=sampler)

    def _value(self, name: str, drawn: Any) -> Any:
        dimension = self._space[name]
        return dimension.values[drawn] if isinstance(dimension, Choices) else drawn

    def _drawn(self, name: str, recorded: Any) -> Any:
        """Returns what Optuna draws for a value that is recorded as JSON."""
        dimension = self._space[name]
        if not isinstance(dimension, Choices):
            return recorded
        return [plain({name: value})[name] for value in dimension.values].index(recorded)
