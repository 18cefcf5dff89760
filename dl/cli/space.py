"""Parses search spaces: `batch_size=32,64` lists values, `rate=log:1e-4:1e-1` is a range."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from dl.errors import UserError
from dl.studies.search import Choices, Dimension, Interval


def parse_space(words: Sequence[str], parse_value: Callable[[str, str], Any]) -> dict[str, Dimension]:
    """Returns the space that words such as `batch_size=32,64` and `learning_rate=log:1e-4:1e-1` describe.

    NAME=LOW:HIGH is a range. NAME=log:LOW:HIGH is a range on a logarithmic scale. A range that ends in :NUM
    has NUM values in a grid.

    Args:
      words: one word for each option.
      parse_value: returns the value of an option for its name and a text, as on the command line.

    Raises:
      UserError: a word is not understood, or there is none.
    """
    space: dict[str, Dimension] = {}
    for word in words:
        name, equals, text = word.partition("=")
        name = name.strip("-").replace("-", "_")
        if not equals or not text:
            raise UserError(f"{word!r} does not list values; write NAME=A,B,C or NAME=log:LOW:HIGH")
        if name in space:
            raise UserError(f"{name} is given twice; write its values in one word")
        is_log, parts = text.startswith("log:"), text.removeprefix("log:").split(":")
        is_range = len(parts) in (2, 3) and all(map(_is_number, parts))
        if is_range:
            space[name] = _interval(word, [parse_value(name, part) for part in parts[:2]], is_log, parts[2:])
        elif is_log:
            raise UserError(
                f"{word!r} is not a range; write {name}=log:LOW:HIGH, such as {name}=log:1e-4:1e-1"
            )
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
        raise UserError(f"{word!r} is a range, but this option does not take numbers; list its values")
    if not low < high or (is_log and low <= 0):
        raise UserError(
            f"{word!r} is not a range; write the lower bound "
            f"first{', which must be above 0' if is_log else ''}"
        )
    if not all(map(math.isfinite, bounds)):
        raise UserError(f"{word!r} is not a finite range; give two finite bounds")
    if num and not (num[0].isdigit() and int(num[0]) >= 2):
        raise UserError(f"{word!r} asks for a grid of {num[0]} values; give a number of at least 2")
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
