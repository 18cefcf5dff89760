"""The section of a regression: predicted against actual values, and residuals.

Shapes: N examples, D outputs.
"""

import numpy as np

from dl.evaluation.regression_figures import regression_figures
from dl.report.plots import Plot, Series, Table, plot
from dl.report.task import TaskSection, figure_text, histogram
from dl.runs.predictions import Regression

MAX_ROWS = 50  # outputs in a table
MAX_PLOTTED = 3  # outputs with plots


def regression_section(predictions: Regression) -> TaskSection:
    """Returns the section of a regression. Examples with a NaN are left out and counted."""
    is_finite_N = np.isfinite(predictions.output).all(1) & np.isfinite(predictions.target).all(1)
    output_ND, target_ND = (
        np.asarray(x, np.float64)[is_finite_N] for x in (predictions.output, predictions.target)
    )
    left_out = int((~is_finite_N).sum())
    shown = [("examples left out", f"{left_out:,}, whose output or target is no finite number")] * (
        left_out > 0
    )
    if not len(output_ND):
        return TaskSection("Regression", predictions.sample, shown)
    names = predictions.target_names
    figures = regression_figures(output_ND, target_ND)
    shown = [
        ("R²" if name == "r_squared" else name.replace("_", " "), figure_text(figure))
        for name, figure in figures.items()
    ] + shown
    by_output = [regression_figures(output_ND[:, [d]], target_ND[:, [d]]) for d in range(len(names))]
    # The worst outputs come first; an undefined R² comes last.
    order = np.argsort([one["r_squared"].value for one in by_output], kind="stable")
    plots: list[Plot] = []
    for d in order[:MAX_PLOTTED].tolist():
        plots += _plots(names[d], output_ND[:, d], target_ND[:, d])
    return TaskSection("Predictions", predictions.sample, shown, plots, _tables(names, by_output, order))


def _tables(names, by_output, order) -> list[Table]:  # type: ignore[no-untyped-def]
    if len(names) < 2:
        return []
    title = "Figures of each output, the lowest R² first"
    if len(names) > MAX_ROWS:
        title = f"The {MAX_ROWS} outputs of {len(names):,} with the lowest R²"
    rows = [
        (names[d], *(f"{by_output[d][name].value:.4g}" for name in by_output[d]))
        for d in order[:MAX_ROWS].tolist()
    ]
    return [Table(title, ("output", "mean absolute error", "root mean squared error", "R²"), rows)]


def _plots(name: str, output_N: np.ndarray, target_N: np.ndarray) -> list[Plot]:
    residual_N = output_N - target_N
    ends = np.array([min(output_N.min(), target_N.min()), max(output_N.max(), target_N.max())])
    spread = np.quantile(residual_N, (0.05, 0.5, 0.95))
    words = (
        f"Of the residuals, output - target, half lie below {spread[1]:.4g}, "
        f"and nine in ten between {spread[0]:.4g} and {spread[2]:.4g}."
    )
    bars, rows = histogram(residual_N)
    most = max((bar[2] for bar in bars), default=1.0)
    examples = "one example"
    return [
        plot(
            f"Predicted against actual: {name}",
            f"Outputs over targets; on the line they are equal. {words}",
            name if name == "target" else f"target: {name}",
            "output",
            [
                Series("output equals target", ends, ends, 9),
                Series(examples, target_N, output_N, 0, has_dots=True, has_line=False),
            ],
        ),
        plot(
            f"Residuals over outputs: {name}",
            f"Output - target over the output. {words}",
            "output" if name == "target" else f"output: {name}",
            "output - target",
            [
                Series("no error", np.array([output_N.min(), output_N.max()]), np.zeros(2), 9),
                Series(examples, output_N, residual_N, 1, has_dots=True, has_line=False),
            ],
        ),
        plot(
            f"Histogram of the residuals: {name}",
            words,
            "output - target",
            "examples",
            [],
            x_range=(bars[0][0], bars[-1][1]),
            y_range=(0.0, most * 1.05),
            bars=bars,
            table=Table("Histogram of the residuals", ("output - target", "examples"), rows),
        ),
    ]
