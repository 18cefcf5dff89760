"""The texts that a classifier reads, from the tokens of its data."""

from collections.abc import Callable, Sequence

import numpy as np

from dl.experiment import Experiment
from dl.report.token_text import TokenText
from dl.types import SEGMENT_IDS, Source

MAX_LETTERS = 600  # of a text that is shown


def texts_of(experiment: Experiment, source: Source) -> Callable[[np.ndarray], Sequence[str]] | None:
    """Returns a function from rows of a split to their texts; `None` if the data are not texts.

    The data are texts if they name their tokens and the model's input is a row of integers. Tokens of segment
    0 are padding.
    """
    name = experiment.task.input_name
    leaf = source.spec.get(name)
    names = tuple(map(str, getattr(experiment.data, "token_names", ())))
    if not names or leaf is None or len(leaf.shape) != 1 or np.dtype(leaf.dtype).kind not in "iu":
        return None
    text = TokenText(names)

    def texts(rows: np.ndarray) -> list[str]:
        examples = source[rows]
        is_token = examples.get(SEGMENT_IDS, np.ones_like(examples[name])) > 0
        read = [
            text.join(tokens[valid].tolist()) for tokens, valid in zip(examples[name], is_token, strict=True)
        ]
        return [line if len(line) <= MAX_LETTERS else f"{line[:MAX_LETTERS]}…" for line in read]

    return texts
