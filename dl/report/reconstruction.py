"""The section of an autoencoder: its errors, and pairs of inputs and outputs as pictures.

Shapes: N examples, K of them kept in full.
"""

import numpy as np

from dl.report.picture import to_data_uri
from dl.report.plots import Table, plot
from dl.report.task import Example, TaskSection, histogram
from dl.runs.predictions import Reconstruction

NUM_SHOWN = 12


def reconstruction_section(predictions: Reconstruction) -> TaskSection:
    """Returns the section of an autoencoder, with pictures if the inputs have the shape of images."""
    error_N = predictions.error.astype(np.float64)
    finite_N = error_N[np.isfinite(error_N)]
    left_out = len(error_N) - len(finite_N)
    figures = []
    if len(finite_N):
        low, middle, high = np.quantile(finite_N, (0.05, 0.5, 0.95))
        figures = [
            ("mean squared error", f"{finite_N.mean():.4g}"),
            ("root mean squared error", f"{np.sqrt(finite_N.mean()):.4g}"),
            ("median over the examples", f"{middle:.4g}"),
            ("nine in ten lie between", f"{low:.4g} and {high:.4g}"),
        ]
    if left_out:
        figures.append(("examples left out", f"{left_out:,}, whose error is no finite number"))
    bars, rows = histogram(finite_N)
    title = "Squared error of the examples"
    plots = [
        plot(
            title,
            f"How many examples have which mean squared error of their values; {len(finite_N):,} in all.",
            "mean squared error",
            "examples",
            [],
            x_range=(bars[0][0], bars[-1][1]),
            y_range=(0.0, 1.05 * max(bar[2] for bar in bars)),
            bars=bars,
            table=Table(title, ("mean squared error", "examples"), rows),
        )
    ] * bool(bars)
    worst = _examples(predictions, range(min(predictions.num_worst, NUM_SHOWN)))
    first = predictions.num_worst
    others = _examples(predictions, range(first, min(len(predictions.shown), first + NUM_SHOWN)))
    named = (("The largest errors", worst), ("Others, at random", others))
    examples = [(title, shown) for title, shown in named if shown]
    return TaskSection("Reconstructions", predictions.sample, figures, plots, (), examples)


def _examples(predictions: Reconstruction, places: range) -> list[Example]:
    shape = predictions.input.shape[1:]
    if len(shape) != 3 or shape[-1] not in (1, 3):
        return []
    inputs = predictions.input[np.isfinite(predictions.input)]
    # Both pictures of every pair have the scale of the inputs, which is [0, 1] if they are in this range.
    low, high = min(0.0, float(inputs.min(initial=0))), max(1.0, float(inputs.max(initial=1)))

    def picture(values: np.ndarray) -> str:
        share = np.clip((np.nan_to_num(values, nan=low) - low) / (high - low), 0, 1)
        return to_data_uri((share * 255).round().astype(np.uint8))

    return [
        Example(
            [("input", picture(predictions.input[k])), ("reconstruction", picture(predictions.output[k]))],
            (),
            f"row {predictions.index[predictions.shown[k]]}, squared error "
            f"{predictions.error[predictions.shown[k]]:.4g}",
        )
        for k in places
    ]
