"""The mistakes of a classifier that are shown, with their pictures or texts."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from dl.report.picture import to_data_uri
from dl.runs.predictions import Predictions
from dl.types import Source

NUM_MISTAKES = 25


@dataclasses.dataclass(frozen=True)
class Mistake:
    """An example whose predicted class is not its label.

    Attributes:
      row: the row of the example in the split.
      label: the name of its label.
      predicted: the name of the predicted class.
      confidence: the probability of the predicted class.
      label_probability: the probability of the label.
      picture: a PNG as a data URI; empty if there is no picture.
      text: the text that was classified; empty if there is none.
    """

    row: int
    label: str
    predicted: str
    confidence: str
    label_probability: str
    picture: str
    text: str


def most_confident_mistakes(
    predictions: Predictions,
    wrong_N: np.ndarray,
    pictures: Source | None,
    texts: Callable[[np.ndarray], Sequence[str]] | None,
) -> list[Mistake]:
    """Returns the wrong predictions with the highest probabilities; see `classifier.classifier_sections`.

    Args:
      predictions: the predictions for one split.
      wrong_N: positions of the wrong predictions.
      pictures: the split, whose feature `image` is shown. `None` means no pictures.
      texts: function from rows of the split to their texts. `None` means no texts.
    """
    log_p_NC, names = predictions.log_probabilities, predictions.class_names
    chosen = wrong_N[np.argsort(-log_p_NC[wrong_N].max(-1), kind="stable")][:NUM_MISTAKES]
    images: Sequence[str] = [""] * len(chosen)
    if pictures is not None and len(chosen):
        images = [to_data_uri(image) for image in pictures[predictions.index[chosen]]["image"]]
    read = [""] * len(chosen) if texts is None else texts(predictions.index[chosen])
    return [
        Mistake(
            int(predictions.index[n]),
            names[predictions.label[n]],
            names[int(log_p_NC[n].argmax())],
            f"{np.exp(log_p_NC[n].max()):.1%}".replace("%", " %"),
            f"{np.exp(log_p_NC[n, predictions.label[n]]):.1%}".replace("%", " %"),
            image,
            shown,
        )
        for n, image, shown in zip(chosen, images, read, strict=True)
    ]
