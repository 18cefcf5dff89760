"""The text of an explanation, in which the colour of a token is its weight: as HTML and for a terminal."""

import html

import numpy as np

from dl.analysis.explanation import Explanation
from dl.report.explanation_picture import headline
from dl.report.task import NUM_SHADES, Words
from dl.report.token_text import TokenText
from dl.system.text import printable

_FOR, _AGAINST = "178, 24, 43", "33, 102, 172"  # red and blue, as in the pictures
_RESET = "\x1b[0m"


def to_html(explanation: Explanation) -> str:
    """Returns a page of the text. A browser shows the weight of the token under the pointer."""
    spans = []
    for text, weight, share in _tokens(explanation):
        colour = f"rgba({_FOR if weight > 0 else _AGAINST}, {abs(share):.2f})"
        dark = "; color: white" if abs(share) > 0.6 else ""
        spans.append(
            f'<span title="{weight:+.4g}" style="background: {colour}{dark}">{html.escape(text)}</span>'
        )
    title = html.escape(printable(headline(explanation)))
    rows = "".join(
        f"<tr><td>{html.escape(printable(name))}</td><td>{weight:+.4g}</td></tr>"
        for name, weight in explanation.strongest()
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        "<style>body { font: 1.1rem/1.8 sans-serif; max-width: 45em; margin: 2em auto; padding: 0 1em }"
        " .tokens { white-space: pre-wrap } span { border-radius: 3px } td { padding-right: 1em }</style>"
        f"</head>\n<body><h1>{title}</h1>\n<p>{html.escape(explanation.method)}: "
        f"{html.escape(printable(explanation.basis))}. {_legend(explanation)}</p>\n"
        f'<p class="tokens">{"".join(spans)}</p>\n<table>{rows}</table></body></html>'
    )


def to_ansi(explanation: Explanation) -> str:
    """Returns the text with background colours for a terminal of 256 colours."""
    parts = []
    for text, weight, share in _tokens(explanation):
        level = round(5 * abs(share))
        red, green, blue = (5, 5 - level, 5 - level) if weight > 0 else (5 - level, 5 - level, 5)
        number = 16 + 36 * red + 6 * green + blue
        parts.append(
            f"\x1b[38;5;16;48;5;{number}m{printable(text)}" if level else f"{_RESET}{printable(text)}"
        )
    return f"{''.join(parts)}{_RESET}"


def to_words(explanation: Explanation) -> Words:
    """Returns the tokens with the shades of a report, which are of the size of the weights."""
    return [(text, round(NUM_SHADES * abs(share))) for text, _, share in _tokens(explanation)]


def _tokens(explanation: Explanation) -> list[tuple[str, float, float]]:
    """Returns the text of each token, its weight, and the weight as a share of the largest."""
    text_of = TokenText(explanation.input_names)
    places = np.flatnonzero(explanation.is_shown)
    most = float(np.abs(explanation.attributions[places]).max(initial=0.0)) or 1.0
    found = []
    for place in places.tolist():
        weight = float(explanation.attributions[place])
        found.append((text_of(int(explanation.input[place])), weight, weight / most))
    return found


def _legend(explanation: Explanation) -> str:
    if explanation.is_signed:
        return "Red speaks for the class, blue against it."
    return "The darker, the larger the weight."
