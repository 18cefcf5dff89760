"""Where the options of an experiment are searched, and in which order: grids, random draws, halving, TPE."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dl.errors import UserError

REDUCTION = 3  # of a rung of successive halving the best third goes on (Li et al. 2018, 3.6)
_RANDOM_KEY = 2**62  # apart from the keys of orders, (seed, epoch)
_DIGITS = 6  # of a number drawn, so that it can be typed again


@dataclass(frozen=True)
class Choices:
    """An option that takes one of a few values."""

    values: tuple[Any, ...]

    def at(self, place: float) -> Any:
        """Returns the value at a place in [0, 1)."""
        return self.values[int(place * len(self.values))]

    def grid(self, name: str) -> tuple[Any, ...]:
        return self.values


@dataclass(frozen=True)
class Interval:
    """A number between two bounds, both included; whole if they are.

    Attributes:
      low: the lower bound.
      high: the upper bound.
      is_log: whether equal ratios are equally likely, rather than equal differences.
      num: values of a grid; None where there is to be none.
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
        high = self.high + 1 if self.is_whole else self.high  # each whole number has a place of its own
        if self.is_log:
            value = self.low * (high / self.low) ** place
        else:
            value = self.low + place * (high - self.low)
        return self._fit(math.floor(value) if self.is_whole else value)

    def grid(self, name: str) -> tuple[float, ...]:
        if self.num is None:
            text = f"{'log:' if self.is_log else ''}{self.low:g}:{self.high:g}"
            raise UserError(
                f"a grid needs to know how many values; write {name}={text}:5, or --method random"
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


def parse_space(words: Sequence[str], parse_value: Callable[[str, str], Any]) -> dict[str, Dimension]:
    """Returns the space that words such as `batch_size=32,64` and `learning_rate=log:1e-4:1e-1` describe.

    NAME=LOW:HIGH is a range, NAME=log:LOW:HIGH one by ratios, with :NUM behind it a grid of so many values.

    Args:
      words: one for each option.
      parse_value: from an option's name and a text to its value, as on the command line.

    Raises:
      UserError: a word that means nothing.
    """
    space: dict[str, Dimension] = {}
    for word in words:
        name, equals, text = word.partition("=")
        name = name.strip("-").replace("-", "_")
        if not equals or not text:
            raise UserError(f"{word!r} is no option with values; write NAME=A,B,C or NAME=log:LOW:HIGH")
        if name in space:
            raise UserError(f"{name} is given twice; write its values in one word")
        is_log, parts = text.startswith("log:"), text.removeprefix("log:").split(":")
        is_range = len(parts) in (2, 3) and all(map(_is_number, parts))
        if is_range:
            space[name] = _interval(word, [parse_value(name, part) for part in parts[:2]], is_log, parts[2:])
        elif is_log:
            raise UserError(f"{word!r} is no range; write {name}=log:LOW:HIGH, such as {name}=log:1e-4:1e-1")
        else:
            values = tuple(parse_value(name, part) for part in text.split(","))
            if twice := _repeated(values):
                raise UserError(f"{word!r} gives {twice[0]} twice; write each value once")
            space[name] = Choices(values)
    if not space:
        raise UserError("there is nothing to search; write options as NAME=A,B,C or NAME=log:LOW:HIGH")
    return space


def _interval(word: str, bounds: Sequence[Any], is_log: bool, num: Sequence[str]) -> Interval:
    low, high = bounds
    if not all(isinstance(bound, int | float) and not isinstance(bound, bool) for bound in bounds):
        raise UserError(f"{word!r} is a range, and that option is no number; list its values, with commas")
    if not low < high or (is_log and low <= 0):
        raise UserError(f"{word!r} is no range; the lower bound comes first{', above 0' if is_log else ''}")
    if not all(map(math.isfinite, bounds)):
        raise UserError(f"{word!r} is a range without an end; both bounds must be finite")
    if num and not (num[0].isdigit() and int(num[0]) >= 2):
        raise UserError(f"{word!r} asks for a grid of {num[0]} values; it must be at least 2")
    return Interval(low, high, is_log, int(num[0]) if num else None)


def _repeated(values: Sequence[Any]) -> list[str]:
    words = list(map(repr, values))
    return [word for number, word in enumerate(words) if word in words[:number]]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def grid_points(space: Space) -> list[Point]:
    """Returns every combination; the last option changes fastest."""
    values = [dimension.grid(name) for name, dimension in space.items()]
    return [dict(zip(space, point, strict=True)) for point in itertools.product(*values)]


def random_points(space: Space, num_points: int, seed: int) -> list[Point]:
    """Returns independent draws (Bergstra & Bengio 2012); of more points the first are the same."""
    words = np.random.Philox(key=(seed, _RANDOM_KEY)).random_raw(num_points * len(space))
    places = (words >> np.uint64(11)).reshape(num_points, len(space)) / 2.0**53
    return [
        {name: dimension.at(place) for (name, dimension), place in zip(space.items(), row, strict=True)}
        for row in places.tolist()
    ]


def rungs(num_points: int, budget: int) -> list[tuple[int, int]]:
    """Returns how many points get which budget, rung by rung (Jamieson & Talwalkar 2016, algorithm 1).

    The last rung has the whole budget; each before it a third of the next, and three times its points.
    """
    last = 0
    while REDUCTION ** (last + 1) <= min(num_points, budget):
        last += 1
    return [(num_points // REDUCTION**rung, budget // REDUCTION ** (last - rung)) for rung in range(last + 1)]


class Tpe:
    """Points that a tree-structured Parzen estimator proposes (Bergstra et al. 2011), by Optuna.

    The same answers to the same seed bring the same points.
    """

    def __init__(self, space: Space, seed: int, sign: float):
        """`sign` is 1 where large values are good, -1 where small ones are."""
        try:
            import optuna
        except ImportError:
            raise UserError(
                "TPE needs Optuna; pip install 'dl[search]', or choose --method random, grid or halving"
            ) from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._failed = optuna.trial.TrialState.FAIL
        self._study = optuna.create_study(
            direction="maximize" if sign > 0 else "minimize", sampler=optuna.samplers.TPESampler(seed=seed)
        )
        self._space = space
        self._distributions = {
            # The places of the values: a value may be of a type that Optuna cannot store, such as a path.
            name: optuna.distributions.CategoricalDistribution(range(len(dimension.values)))
            if isinstance(dimension, Choices)
            else optuna.distributions.IntDistribution(dimension.low, dimension.high, dimension.is_log)
            if dimension.is_whole
            else optuna.distributions.FloatDistribution(dimension.low, dimension.high, dimension.is_log)
            for name, dimension in space.items()
        }

    def points(self, num_points: int) -> Iterator[tuple[Point, Callable[[float | None], None]]]:
        """Yields points, each with the function that takes its value; None for one that failed."""
        for _ in range(num_points):
            trial = self._study.ask(self._distributions)

            def tell(value: float | None, trial: Any = trial) -> None:
                if value is None:
                    self._study.tell(trial, state=self._failed)
                else:
                    self._study.tell(trial, value)

            yield {name: self._value(name, value) for name, value in trial.params.items()}, tell

    def _value(self, name: str, drawn: Any) -> Any:
        dimension = self._space[name]
        return dimension.values[drawn] if isinstance(dimension, Choices) else drawn
