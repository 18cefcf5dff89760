"""The features that a model reads, from new texts, as its data make them.

Shapes: N texts, T tokens of an example.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dl.data.recorded import itself
from dl.data.text.splits import padded
from dl.errors import UserError
from dl.types import SEGMENT_IDS, Splits


def reads_text(data: Splits, input_name: str) -> bool:
    """Returns whether a feature of the data consists of the tokens of a text."""
    leaf = data.train.spec.get(input_name)
    has_row = leaf is not None and len(leaf.shape) == 1 and np.dtype(leaf.dtype).kind in "iu"
    return has_row and getattr(itself(data), "tokenizer", None) is not None


def features_of(data: Splits, texts: Sequence[str], input_name: str) -> dict[str, np.ndarray]:
    """Returns the features of texts in the form of the examples of a data set.

    If the data have a method `features_of(texts)`, it makes them. Otherwise they are the tokens, (N, T), of
    each text: cut to the length of the examples, or padded at the end; and, if the data have them, the
    `segment_ids`, 1 for tokens and 0 for padding. T is at most the length of the examples.

    Args:
      data: the data that a model was trained on.
      texts: new texts.
      input_name: name of the feature that the model reads.

    Raises:
      UserError: the data have no tokenizer, or a text is not in the vocabulary.
    """
    data = itself(data)
    if not reads_text(data, input_name):
        raise UserError(
            f"the inputs are texts, and the model reads {input_name} of data without a tokenizer; give arrays"
        )
    if any(not isinstance(text, str) for text in texts):
        raise UserError("some inputs are texts and others are not; give texts only, or one array")
    own: Any = getattr(data, "features_of", None)
    if own is not None:
        return dict(own(texts))
    spec, tokenizer = data.train.spec, getattr(data, "tokenizer")  # noqa: B009
    length = spec[input_name].shape[0]
    rows = [tokenizer.encode(text)[:length] for text in texts]
    features = {input_name: padded(rows, length, tokenizer.padding_id or 0)}
    if SEGMENT_IDS in spec:
        lengths = np.array([len(row) for row in rows])
        features[SEGMENT_IDS] = (np.arange(length) < lengths[:, None]).astype(np.int32)
    return features
