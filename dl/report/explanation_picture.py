"""The picture of an explanation: the input, the map and both together, or a bar for each column of a row.

Shapes: H height, W width, M columns.
"""

from typing import IO, TYPE_CHECKING, Any

import numpy as np

from dl.analysis.explanation import Explanation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_BARS = 30
MAX_LETTERS = 40  # of a name in a picture
_DPI = 120
SIGNED, UNSIGNED = "RdBu_r", "inferno"


def write_picture(explanation: Explanation, file: IO[bytes]) -> None:
    """Writes the picture of an explanation of an image or a row, as a PNG of the same bytes each time."""
    figure = _image_figure(explanation) if explanation.form == "image" else _bars(explanation)
    figure.savefig(file, format="png", dpi=_DPI, metadata={"Software": None})


def headline(explanation: Explanation) -> str:
    """Returns the predicted class with its probability, the label if it is known, and what is explained."""
    names, best = explanation.class_names, int(explanation.probabilities.argmax())
    text = f"predicted {_short(names[best])} ({explanation.probabilities[best]:.1%})"
    if explanation.label is not None:
        text += f", label {_short(names[explanation.label])}"
    if explanation.target != best:
        probability = explanation.probabilities[explanation.target]
        text += f"; explained: {_short(names[explanation.target])} ({probability:.1%})"
    return text


def _image_figure(explanation: Explanation) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    figure.suptitle(_plain(headline(explanation)))
    figure.supxlabel(_plain(f"{explanation.method}: {explanation.basis}"), fontsize="small")
    axes = figure.subplots(1, 3)
    pixels = explanation.input[..., 0] if explanation.input.shape[-1] == 1 else explanation.input
    weights_HW = explanation.attributions
    high = float(np.abs(weights_HW).max()) or 1.0
    low = -high if explanation.is_signed else 0.0
    grey = np.asarray(explanation.input, np.float32).mean(-1)
    colours = SIGNED if explanation.is_signed else UNSIGNED
    axes[0].imshow(pixels, cmap="gray", vmin=0, vmax=255)
    shown = axes[1].imshow(weights_HW, cmap=colours, vmin=low, vmax=high)
    axes[2].imshow(grey, cmap="gray", vmin=0, vmax=255)
    strength_HW = np.abs(weights_HW) / high
    axes[2].imshow(weights_HW, cmap=colours, vmin=low, vmax=high, alpha=np.sqrt(strength_HW))
    for place, title in enumerate(("input", "weights", "both")):
        axes[place].set_title(title)
        axes[place].set_axis_off()
    figure.colorbar(shown, ax=axes[1], shrink=0.8)
    return figure


def _bars(explanation: Explanation) -> "Figure":
    from matplotlib.figure import Figure

    strongest = explanation.strongest(MAX_BARS)[::-1]
    names = [_plain(_short(name)) for name, _ in strongest]
    weights = [weight for _, weight in strongest]
    figure = Figure(figsize=(7, 1.4 + 0.26 * max(len(names), 3)), layout="constrained")
    axes: Any = figure.subplots()
    places = np.arange(len(names))
    axes.barh(places, weights, color=["tab:red" if weight > 0 else "tab:blue" for weight in weights])
    axes.set_yticks(places, names)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_title(_plain(headline(explanation)))
    axes.set_xlabel(_plain(f"{explanation.method}: {explanation.basis}"), fontsize="small", wrap=True)
    return figure


def _short(name: str) -> str:
    return name if len(name) <= MAX_LETTERS else f"{name[: MAX_LETTERS - 1]}…"


def _plain(text: str) -> str:
    """Returns a text in which Matplotlib sees no mathematics, and no character that is not printable."""
    return "".join(c if c.isprintable() else "?" for c in text).replace("$", r"\$")
