"""Text from outside, such as names of classes and files, made safe to show.

A name may hold anything: an escape sequence that repaints a terminal, a line break that forges a line, a
formula that a spreadsheet runs.
"""

import unicodedata

# Characters that reorder what stands beside them (Unicode TR 9): a name could show as another one.
_REORDERING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_ESCAPED = ("Cc", "Cs", "Zl", "Zp")  # control characters, halves of pairs, separators of lines and paragraphs
# After each a spreadsheet reads a formula; the last four are wide forms.
_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")


def printable(text: object) -> str:
    r"""Returns `str(text)` as one line that changes nothing but itself on a terminal or in a log.

    Control characters, line breaks, reordering characters and bytes that are not text are written as Python
    escapes them, `\x1b`; all other characters stay.
    """
    return "".join(_escape(c) if _is_escaped(c) else c for c in str(text))


def csv_cell(text: object) -> str:
    """Returns `printable(text)` for a cell of text in a spreadsheet: a formula gets an apostrophe before it.

    For names, not for numbers: `-1` is taken for a formula too. See OWASP, "CSV Injection".
    """
    line = printable(text)
    return f"'{line}" if line.lstrip().startswith(_FORMULA) else line


def _is_escaped(character: str) -> bool:
    return unicodedata.category(character) in _ESCAPED or character in _REORDERING


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
