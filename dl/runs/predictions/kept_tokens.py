"""The predictions that are kept of tasks about text.

Shapes: N examples that were kept, K of them that are kept in full, T targets of a sequence, S tokens that the
model reads, V tokens of the vocabulary, C classes.
"""

import dataclasses
from typing import ClassVar

import numpy as np

from dl.losses import NOT_COUNTED
from dl.runs.predictions.kept import Kept, Layout, check_range, check_shown


@dataclasses.dataclass(frozen=True)
class LanguageModel(Kept):
    """Predictions of a language model.

    Attributes:
      loss: the sum of the cross-entropies of the tokens of each sequence, in nats, float32, shape N.
      num_right: the number of correctly predicted tokens of each sequence, int32, shape N.
      num_tokens: the number of tokens of each sequence that count, int32, shape N.
      shown: positions in `index` of the sequences that are kept in full, as in `Reconstruction`; the worst
        have the highest loss per token.
      num_worst: the number of sequences in `shown` that have the highest loss.
      token: the tokens, int32, shape K × T.
      token_loss: the cross-entropy of each token but the first, in nats, float32, shape K × (T - 1). NaN if
        the token does not count.
      token_names: the text of each token; empty if the data do not state it.
    """

    kind = "language_model"
    layout: ClassVar[Layout] = {
        "loss": ("f", "N"),
        "num_right": ("iu", "N"),
        "num_tokens": ("iu", "N"),
        "shown": ("iu", "K"),
        "num_worst": ("iu", ""),
        "token": ("iu", "KT"),
        "token_loss": ("f", "KS"),
        "token_names": ("U", "V"),
    }

    loss: np.ndarray
    num_right: np.ndarray
    num_tokens: np.ndarray
    shown: np.ndarray
    num_worst: int
    token: np.ndarray
    token_loss: np.ndarray
    token_names: tuple[str, ...]

    def check(self) -> None:
        check_shown(self.shown, self.num_worst, len(self.index))
        if self.token.shape[1] != self.token_loss.shape[1] + 1:
            raise ValueError(
                f"token has the shape {self.token.shape}, but token_loss has the shape "
                f"{self.token_loss.shape}"
            )
        check_num_right(self.num_right, self.num_tokens)
        if self.token_names:
            check_range("token", self.token, len(self.token_names))


@dataclasses.dataclass(frozen=True)
class Tokens(Kept):
    """Predictions of one target for each token: what all kinds have except the language model.

    Attributes:
      loss: the sum of the cross-entropies of the targets of each sequence, in nats, float32, shape N.
      num_right: the number of targets of each sequence that are predicted right, int32, shape N.
      num_tokens: the number of targets of each sequence that count, int32, shape N.
      shown: positions in `index` of the sequences that are kept in full, as in `Reconstruction`; the worst
        have the highest loss per token.
      num_worst: the number of sequences in `shown` that have the highest loss.
      token: the tokens that the model reads, int32, shape K × S; `NOT_COUNTED` at padding.
      target: the targets, int32, shape K × T; `NOT_COUNTED` where none counts.
      guess: the predictions with the highest probability, int32, shape K × T.
      token_loss: the cross-entropy of each target, in nats, float32, shape K × T; NaN where none counts.
      token_names: the text of each token; empty if the data do not state it.
    """

    layout: ClassVar[Layout] = {
        "loss": ("f", "N"),
        "num_right": ("iu", "N"),
        "num_tokens": ("iu", "N"),
        "shown": ("iu", "K"),
        "num_worst": ("iu", ""),
        "token": ("iu", "KS"),
        "target": ("iu", "KT"),
        "guess": ("iu", "KT"),
        "token_loss": ("f", "KT"),
        "token_names": ("U", "V"),
    }

    loss: np.ndarray
    num_right: np.ndarray
    num_tokens: np.ndarray
    shown: np.ndarray
    num_worst: int
    token: np.ndarray
    target: np.ndarray
    guess: np.ndarray
    token_loss: np.ndarray
    token_names: tuple[str, ...]

    @property
    def target_names(self) -> tuple[str, ...]:
        """The text of each target; empty if it is not known."""
        return self.token_names

    def check(self) -> None:
        check_shown(self.shown, self.num_worst, len(self.index))
        check_num_right(self.num_right, self.num_tokens)
        for name, values, names in (
            ("token", self.token, self.token_names),
            ("target", self.target, self.target_names),
            ("guess", self.guess, self.target_names),
        ):
            if names:
                check_range(name, values, len(names), NOT_COUNTED)


@dataclasses.dataclass(frozen=True)
class MaskedLanguageModel(Tokens):
    """Predictions of a masked language model. `token` holds the corrupted sequences, and S = T."""

    kind = "masked_language_model"

    def check(self) -> None:
        super().check()
        check_same_length(self.token, self.target)


@dataclasses.dataclass(frozen=True)
class SequenceToSequence(Tokens):
    """Predictions of a sequence-to-sequence task, each from the true tokens before it.

    `token` holds the sources.
    """

    kind = "sequence_to_sequence"


@dataclasses.dataclass(frozen=True)
class Tagging(Tokens):
    """Predictions of the class of each token; S = T.

    Attributes:
      class_names: the name of each class.
    """

    kind = "tagging"
    layout: ClassVar[Layout] = {**Tokens.layout, "class_names": ("U", "C")}

    class_names: tuple[str, ...]

    @property
    def target_names(self) -> tuple[str, ...]:
        """The name of each class."""
        return self.class_names

    def check(self) -> None:
        super().check()
        check_same_length(self.token, self.target)


def check_num_right(num_right: np.ndarray, num_tokens: np.ndarray) -> None:
    """Raises ValueError if more targets are right than there are."""
    if (num_right < 0).any() or (num_right > num_tokens).any():
        raise ValueError("num_right is not in [0, num_tokens]")


def check_same_length(token: np.ndarray, target: np.ndarray) -> None:
    """Raises ValueError if tokens and targets differ in shape."""
    if token.shape != target.shape:
        raise ValueError(f"token has the shape {token.shape}, but target has the shape {target.shape}")
