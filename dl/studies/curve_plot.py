"""The plot of a learning curve: the error of each run over the size, and the power law.

Shapes: S sizes, R runs of each.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dl.evaluation.intervals import Interval
from dl.studies.power_law import PowerLaw, forecast

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot(
    sizes: Sequence[int], errors_SR: np.ndarray, law: PowerLaw | None, xlabel: str, ylabel: str
) -> "Figure":
    """Plots the error over the sizes: a point for each run, and the power law with its 95 % band."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot(np.repeat(sizes, errors_SR.shape[1]), errors_SR.ravel(), "k.", label="a run")
    if law is not None:
        places = np.geomspace(sizes[0], 4 * sizes[-1], 60)
        bands: list[Interval] = [forecast(sizes, errors_SR, place) for place in places]
        low, high = [band.low for band in bands], [band.high for band in bands]
        axes.fill_between(places, low, high, alpha=0.2, label="95 % interval of the law")
        axes.plot(places, law(places), label=f"{law.scale:.3g} n$^{{-{law.exponent:.3g}}}$ + {law.floor:.3g}")
    axes.set(xlabel=xlabel, ylabel=ylabel)
    seen = errors_SR[np.isfinite(errors_SR)]
    if seen.size:
        axes.set(xscale="log", yscale="log" if (seen > 0).all() else "linear")
    axes.legend()
    return figure
