"""A value of an option, written as the words of a command line, is read back as that value."""

import dataclasses
import inspect
import math
import shlex
from pathlib import Path
from typing import Literal

import pytest

from dl.cli.options import parse, to_words


def every_kind(
    flag: bool = True,
    maybe: bool | None = None,
    sizes: tuple[int, ...] = (16,),
    pair: tuple[float, float] = (0.0, 1.0),
    nested: tuple[tuple[int, int], ...] = ((1, 2),),
    names: tuple[str, ...] = ("a",),
    place: Path = Path("x"),
    number: float = 1.0,
    text: str = "s",
    limit: int | None = 3,
    kind: Literal["x", "y"] = "x",
) -> None:
    """Takes options of every kind."""


@pytest.mark.parametrize(
    "own",
    [
        {"flag": False},
        {"flag": True, "maybe": True},
        {"maybe": False, "limit": None},
        {"sizes": (), "names": ("a b", "c"), "kind": "y"},
        {"sizes": (8, -4), "pair": (-1.0, 1e-5), "nested": ((3, 4), (-5, 6))},
        {"pair": (-math.inf, 0.5), "names": ("-x",), "number": -1e-30},
        {"place": Path("-a folder/b"), "text": "-it's = $HOME"},
        {"text": "", "names": ("",), "number": math.inf},
    ],
)
def test_the_words_of_a_value_are_read_back_as_that_value(own):
    defaults = {name: p.default for name, p in inspect.signature(every_kind).parameters.items()}
    words = [word for name, value in own.items() for word in to_words(name, value, name == "flag")]
    values, _ = parse(every_kind, Nothing, shlex.split(shlex.join(words)), "p")
    assert values == {**defaults, **own}


def test_the_words_of_nan_are_read_back_as_nan():
    values, _ = parse(every_kind, Nothing, to_words("number", math.nan), "p")
    assert math.isnan(values["number"])


@dataclasses.dataclass
class Nothing:
    """No options."""
