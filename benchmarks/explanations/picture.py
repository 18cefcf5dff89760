"""The picture of the maps: of a trained network, after its parameters became random, and in clutter."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.explanations.networks import Explained


def draw(path: Path, one: Explained, among: Explained, methods: Mapping[str, Any], edges: Any) -> None:
    """Writes a PNG with a row for each network and a column for each method.

    Args:
      path: the file.
      one: a network of digits.
      among: a network of digits in clutter.
      methods: the methods by name; see `__main__`.
      edges: the method that returns the edges of the image.
    """
    columns = {**methods, "edges (Sobel)": edges}
    rows = [
        ("trained", one, one.variables, 0),
        ("random", one, one.fresh(), 0),
        ("trained", one, one.variables, 1),
        ("random", one, one.fresh(), 1),
        ("clutter", among, among.variables, 0),
        ("clutter", among, among.variables, 2),
    ]
    figure = Figure(figsize=(1.35 * (len(columns) + 1), 1.3 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), len(columns) + 1)
    for row, (title, network, variables, k) in enumerate(rows):
        images, labels = network.images[k : k + 1], network.labels[k : k + 1]
        axes[row, 0].imshow(images[0, ..., 0], cmap="gray")
        axes[row, 0].set_ylabel(title)
        for column, (name, explain) in enumerate(columns.items(), 1):
            axes[row, column].imshow(
                np.abs(explain(network, variables, images, labels))[0, ..., 0], cmap="inferno"
            )
            axes[0, column].set_title(
                name.replace("integrated ", "integrated\n").replace("guided ", "guided\n")
            )
        for one_axes in axes[row]:
            one_axes.set(xticks=[], yticks=[])
    axes[0, 0].set_title("input")
    figure.savefig(path, dpi=75)
