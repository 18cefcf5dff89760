"""An explanation of one prediction: the weight of each pixel, token or column.

Shapes: C classes, H height, W width, T tokens, M columns.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

Form = Literal["image", "text", "row"]
"""What a model reads."""

Method = Literal[
    "gradient",
    "gradient-x-input",
    "smoothgrad",
    "guided-backpropagation",
    "integrated-gradients",
    "grad-cam",
    "lrp",
    "occlusion",
    "lime",
    "shap",
]


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What a prediction for one input rests on.

    Attributes:
      form: what the input is.
      method: how it was explained.
      basis: which score was explained, and against which background.
      input: the input as the data store it: uint8 (H, W, 1 or 3), tokens (T,) or a row (M,).
      attributions: weight of each pixel (H, W), token (T,) or column (M,), float64.
      is_signed: whether a negative weight speaks against the class. Otherwise the weights are sizes.
      is_shown: which tokens are not padding, bool (T,); all True for other inputs.
      input_names: names of the columns, or of the tokens of the vocabulary; empty for images.
      target: index of the class that is explained.
      probabilities: probability of each class, shape (C,).
      class_names: name of each class.
      label: index of the true class; `None` if it is not known.
      figures: name and value of what says how exact the explanation is: `completeness error`, the difference
        between the sum of the weights and the difference of scores that they explain, as a share of that
        difference; or `fidelity R²` of a local linear model.
    """

    form: Form
    method: Method
    basis: str
    input: np.ndarray
    attributions: np.ndarray
    is_signed: bool
    is_shown: np.ndarray
    input_names: Sequence[str]
    target: int
    probabilities: np.ndarray
    class_names: Sequence[str]
    label: int | None
    figures: Mapping[str, float]

    def name_of(self, place: int) -> str:
        """Returns the name of a token or column, or the row and column of a pixel."""
        if self.form == "image":
            row, column = divmod(place, self.attributions.shape[1])
            return f"pixel ({row}, {column})"
        names = self.input_names
        if self.form == "text":
            token = int(self.input[place])
            return names[token] if token < len(names) else str(token)
        return f"{names[place]} = {float(self.input[place]):.4g}"

    def strongest(self, count: int = 10) -> list[tuple[str, float]]:
        """Returns names and weights of the places with the largest weights by size, the largest first."""
        weights = np.where(self.is_shown, self.attributions, 0.0).ravel()
        order = [int(place) for place in np.argsort(-np.abs(weights), kind="stable")[:count]]
        return [(self.name_of(place), float(weights[place])) for place in order if weights[place]]

    def by_region(self) -> list[tuple[str, float]]:
        """Returns the sum of the weights of an image in each of nine regions, the largest by size first."""
        names = [
            f"{vertical} {horizontal}".replace("middle middle", "middle")
            for vertical in ("upper", "middle", "lower")
            for horizontal in ("left", "middle", "right")
        ]
        height, width = self.attributions.shape
        row_H, column_W = np.arange(height) * 3 // height, np.arange(width) * 3 // width
        sums = np.bincount(
            (row_H[:, None] * 3 + column_W[None]).ravel(), self.attributions.ravel(), minlength=len(names)
        )
        return sorted(zip(names, sums.tolist(), strict=True), key=lambda pair: -abs(pair[1]))
