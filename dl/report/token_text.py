"""The text of tokens, as a reader of a report sees it."""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from dl.report.task import NUM_SHADES


class TokenText:
    """A function from tokens to text.

    A vocabulary that marks the continuation of a word by ## (WordPiece) has spaces before all other tokens.
    """

    def __init__(self, names: Sequence[str]):
        """Makes the function from the names of the tokens; without names, a token is shown as its number."""
        self._names = names
        self._marks_continuation = any(name.startswith("##") and len(name) > 2 for name in names)

    def __call__(self, token: int) -> str:
        """Returns the text of a token; line breaks and control characters are shown as in Python."""
        if not self._names:
            return f"{token} "
        if token >= len(self._names):  # a sentinel after the vocabulary
            return f"<{token}>"
        name = self._names[token]
        if self._marks_continuation:
            name = name[2:] if name.startswith("##") else f" {name}"
        return name if name.isprintable() else repr(name)[1:-1]

    def word(self, token: int) -> str:
        """Returns the text of one token alone, for a cell of a table or brackets."""
        text = self(token)
        return repr(text) if not text or text.isspace() else text.strip()

    def join(self, tokens: Iterable[int]) -> str:
        """Returns the text of several tokens."""
        return "".join(map(self, tokens)).strip()


def shade_of_loss(loss: float) -> int:
    """Returns the shade of 1 - p, for a loss of -log p: 0 if p is 1, `NUM_SHADES` if p is near 0."""
    return NUM_SHADES if math.isnan(loss) else math.ceil(-math.expm1(-max(loss, 0.0)) * NUM_SHADES)


def num_up_to_last(is_counted: np.ndarray) -> int:
    """Returns how many values there are up to the last True; what follows is padding."""
    return int(np.flatnonzero(is_counted)[-1]) + 1 if is_counted.any() else 0
