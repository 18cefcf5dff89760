"""Safe output of text from outside, such as names of classes and files.

A name can contain an escape sequence that changes the terminal, a line break that forges a line of a log, or
a formula that a spreadsheet runs.
"""

import unicodedata

# Characters that reorder their neighbours (Unicode TR 9), so that one name could look like another.
_REORDERING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_ESCAPED = ("Cc", "Cs", "Zl", "Zp")  # control characters, surrogates, line and paragraph separators
# A spreadsheet reads a cell that starts with one of these as a formula. The last four are full-width forms.
_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")


def printable(text: object) -> str:
    r"""Returns `str(text)` as one line that is safe on a terminal and in a log.

    Control characters, line breaks, reordering characters and undecodable bytes are written as Python
    escapes, such as `\x1b`. All other characters are unchanged.
    """
    return "".join(_escape(c) if _is_escaped(c) else c for c in str(text))


def printable_text(text: str) -> str:
    """Returns `printable(text)` with its line breaks and tabs, for a text of several lines."""
    return "".join(c if c in "\n\t" else printable(c) for c in text)


def csv_cell(text: object) -> str:
    """Returns `printable(text)` for a text cell of a spreadsheet. A formula gets an apostrophe before it.

    It is for names, not for numbers, because `-1` is treated as a formula too. See OWASP, "CSV Injection".
    """
    line = printable(text)
    return f"'{line}" if line.lstrip().startswith(_FORMULA) else line


def _is_escaped(character: str) -> bool:
    return unicodedata.category(character) in _ESCAPED or character in _REORDERING


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
