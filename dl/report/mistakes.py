"""The mistakes of a classifier that are shown, with their pictures or texts."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from dl.evaluation.outcomes import Outcomes
from dl.report.picture import to_data_uri
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
    outcomes: Outcomes,
    index: np.ndarray,
    names: Sequence[str],
    pictures: Source | None,
    texts: Callable[[np.ndarray], Sequence[str]] | None,
) -> list[Mistake]:
    """Returns the wrong predictions with the highest probabilities; see `classifier.classifier_sections`.

    Args:
      outcomes: the outcomes of N examples.
      index: their rows in the split, shape N.
      names: the names of the classes.
      pictures: the split, whose feature `image` is shown. `None` means no pictures.
      texts: function from rows of the split to their texts. `None` means no texts.
    """
    wrong_N = np.flatnonzero(~np.asarray(outcomes.is_right))
    order = np.argsort(-np.asarray(outcomes.predicted_log_probability)[wrong_N], kind="stable")
    chosen = wrong_N[order][:NUM_MISTAKES]
    images: Sequence[str] = [""] * len(chosen)
    if pictures is not None and len(chosen):
        images = [to_data_uri(image) for image in pictures[index[chosen]]["image"]]
    read = [""] * len(chosen) if texts is None else texts(index[chosen])
    return [
        Mistake(
            int(index[n]),
            names[int(outcomes.label[n])],
            names[int(outcomes.predicted[n])],
            f"{np.exp(outcomes.predicted_log_probability[n]):.1%}".replace("%", " %"),
            f"{np.exp(outcomes.label_log_probability[n]):.1%}".replace("%", " %"),
            image,
            shown,
        )
        for n, image, shown in zip(chosen, images, read, strict=True)
    ]
