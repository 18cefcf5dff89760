"""Ranges of allowed values, and an error of one line for a value that is out of range.

Builders, such as those of schedules, optimizers and penalties, check their arguments with it first.
"""

import dataclasses
import math
import operator
from typing import Any

import jax
import numpy as np

from dl.errors import UserError


@dataclasses.dataclass(frozen=True)
class Range:
    """The values that a number may take, as metadata of an annotation or for `check`.

    Attributes:
      low: the smallest value allowed.
      high: the largest value allowed.
      above_low: whether `low` itself is excluded.
      below_high: whether `high` itself is excluded.
    """

    low: float = -math.inf
    high: float = math.inf
    above_low: bool = False
    below_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = self.low < value if self.above_low else self.low <= value
        below = value < self.high if self.below_high else value <= self.high
        # An integer is finite, even if it is too large for a float.
        return above and below and (isinstance(value, int) or math.isfinite(value))

    def __str__(self) -> str:
        low = f"more than {self.low:,}" if self.above_low else f"at least {self.low:,}"
        if self.high == math.inf:
            return low
        return f"{low} and {'less than' if self.below_high else 'at most'} {self.high:,}"


POSITIVE = Range(0, above_low=True)
NON_NEGATIVE = Range(0)
PROBABILITY = Range(0, 1)
BELOW_ONE = Range(0, 1, below_high=True)
STEPS = Range(1, 2**31 - 1)  # the state counts them in int32


def check(name: str, value: Any, allowed: Range) -> None:
    """Raises UserError unless `value` is a finite number in the range.

    A traced value, such as a learning rate that differs between the runs of one program, is not checked,
    because its value is not known.
    """
    if isinstance(value, jax.core.Tracer):
        return
    if isinstance(value, bool | str) or np.ndim(value) or not np.isrealobj(value):
        raise UserError(f"{name}={value!r} is not a number; it must be {allowed}")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if number not in allowed:
        raise UserError(f"{name}={value} is out of range; it must be a number, {allowed}")


def check_count(name: str, value: Any, allowed: Range) -> int:
    """Returns `value` as an int. Raises UserError unless it is a whole number in the range."""
    try:
        count = int(value) if isinstance(value, float) and value.is_integer() else operator.index(value)
    except TypeError:
        count = None
    if count is None or isinstance(value, bool) or count not in allowed:
        raise UserError(f"{name}={value!r} is out of range; it must be a whole number, {allowed}")
    return count
