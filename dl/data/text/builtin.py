"""Texts that need no file and no network: small sets for a machine where nothing is prepared.

`python_topics` are the help texts of Python itself (module `pydoc_data.topics`, PSF licence), about half a
megabyte of English that differs between versions of Python. `number_words` are the numbers below 10,000 as
English and as German words.
"""

import platform
from collections.abc import Mapping
from typing import Any

from dl.errors import UserError

# Topics with many paragraphs in every version of Python, which are classes.
_CLASSES = ("compound", "debugger", "formatstrings", "specialnames", "string-methods", "types")
_MIN_LENGTH = 60  # characters of a paragraph that is to be classified
_MANY = 20  # the least number of paragraphs of a class
_NUM_NUMBERS = 10_000

_EN = [
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"),
    *("twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
]
_EN_TENS = ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_DE = [
    *("null", "ein", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun", "zehn", "elf"),
    *("zwölf", "dreizehn", "vierzehn", "fünfzehn", "sechzehn", "siebzehn", "achtzehn", "neunzehn"),
]
_DE_TENS = ["", "", "zwanzig", "dreißig", "vierzig", "fünfzig", "sechzig", "siebzig", "achtzig", "neunzig"]

PYTHON_TOPICS, NUMBER_WORDS = "python_topics", "number_words"


def read_builtin(name: str, columns: Mapping[str, str]) -> tuple[dict[str, list[Any]], str]:
    """Returns the rows of a built-in set, all of them train, and its version.

    Args:
      name: `PYTHON_TOPICS`, whose columns are "text" or "text" and "label"; or `NUMBER_WORDS`, whose columns
        are "source" and "target". The names of its fields are "en" and "de".
      columns: names of the fields, by column.

    Raises:
      UserError: the set does not have these fields, or this Python has no help texts.
    """
    if name == PYTHON_TOPICS:
        if not columns.keys() <= {"text", "label"}:
            raise UserError(f"{name} has no translations; choose another data set, such as {NUMBER_WORDS}")
        read = _paragraphs if "label" in columns else _whole
        return read(), platform.python_version()
    if columns.keys() != {"source", "target"}:
        raise UserError(f"{name} is a set for translation; choose another data set, such as {PYTHON_TOPICS}")
    of_field = {"en": english, "de": german}
    for field in columns.values():
        if field not in of_field:
            raise UserError(f"{name} has no field {field!r}; its fields are en and de")
    made = {c: [of_field[field](n) for n in range(_NUM_NUMBERS)] for c, field in columns.items()}
    return made, "1.0.0"


def english(number: int) -> str:
    """Returns a number below 10,000 in English words, such as "two thousand three hundred forty-one"."""
    if number < 20:
        return _EN[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return _EN_TENS[tens] + (f"-{_EN[ones]}" if ones else "")
    size, word = (1000, "thousand") if number >= 1000 else (100, "hundred")
    many, rest = divmod(number, size)
    return f"{_EN[many]} {word}" + (f" {english(rest)}" if rest else "")


def german(number: int) -> str:
    """Returns a number below 10,000 in German words, such as "zweitausenddreihunderteinundvierzig"."""
    if number in (0, 1):
        return ("null", "eins")[number]
    if number < 20:
        return _DE[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return (f"{_DE[ones]}und" if ones else "") + _DE_TENS[tens]
    size, word = (1000, "tausend") if number >= 1000 else (100, "hundert")
    many, rest = divmod(number, size)
    return f"{_DE[many]}{word}" + (german(rest) if rest else "")


def _topics() -> dict[str, list[str]]:
    """Returns the paragraphs of each help text, both in a fixed order."""
    try:
        from pydoc_data import topics  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise UserError(
            "this Python has no help texts (module pydoc_data); install the whole standard library, or "
            "prepare a data set"
        ) from None
    return {name: text.strip().split("\n\n") for name, text in sorted(topics.topics.items())}


def _whole() -> dict[str, list[Any]]:
    """Returns all help texts as one document. A paragraph of several help texts stands only once."""
    seen = dict.fromkeys(paragraph for paragraphs in _topics().values() for paragraph in paragraphs)
    return {"text": ["\n\n".join(seen)]}


def _paragraphs() -> dict[str, list[Any]]:
    """Returns the paragraphs that only one of the chosen help texts has, and its name as the label."""
    topics = _topics()
    owners: dict[str, set[str]] = {}
    for name in _CLASSES:
        for paragraph in topics.get(name, ()):
            if len(text := " ".join(paragraph.split())) >= _MIN_LENGTH:
                owners.setdefault(text, set()).add(name)
    rows = [(text, next(iter(names))) for text, names in owners.items() if len(names) == 1]
    labels = [name for _, name in rows]
    kept = {name for name in _CLASSES if labels.count(name) >= _MANY}
    rows = [row for row in rows if row[1] in kept]
    return {"text": [text for text, _ in rows], "label": [name for _, name in rows]}
