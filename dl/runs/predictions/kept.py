"""What is kept of a run's predictions: a class for each kind of task.

Shapes: N examples that were kept, M of the whole split, C classes or labels, D outputs, K of the N examples
that are kept in full, T tokens of a sequence, Q metrics.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, ClassVar, Self

import numpy as np

from dl.system.files import replace_file

MAX_BYTES = 64 * 2**20  # that are kept of a split; of a larger one it is a random sample of its examples

Layout = Mapping[str, tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Kept:
    """What every kind has.

    Attributes:
      split: its name.
      num_examples: M, of the split; more than N if only a sample was kept.
      index: the row of each example in the split, increasing, int32, shape N.
      metric_names: of the metrics of each example, Q of them; empty where none were kept.
      example_metrics: total and weight of each metric of each example of the split, as the run measured
        them, float32, shape M × Q × 2.
    """

    kind: ClassVar[str]
    # Of each array the letters of its dtype's kind and of its dimensions; "*" is any number of them.
    layout: ClassVar[Layout]

    split: str
    num_examples: int
    index: np.ndarray
    metric_names: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)
    example_metrics: np.ndarray = dataclasses.field(
        default_factory=lambda: np.zeros((0, 0, 2), np.float32), kw_only=True
    )

    @property
    def is_whole(self) -> bool:
        """Whether every example of the split is there."""
        return len(self.index) == self.num_examples

    @property
    def sample(self) -> str:
        """Of which examples it is, in words."""
        of = f"the {self.split} split"
        if self.is_whole:
            return f"all {self.num_examples:,} examples of {of}"
        return f"a random {len(self.index):,} of the {self.num_examples:,} examples of {of}"

    def with_metrics(self, examples: Mapping[str, np.ndarray]) -> Self:
        """Returns the same with the metrics of each example; without, where they would take too much.

        Args:
          examples: by metric, total and weight of each example of the split, shape M × 2.
        """
        if not examples or sum(rows.nbytes for rows in examples.values()) > MAX_BYTES:
            return self
        rows = np.stack([np.asarray(rows, np.float32) for rows in examples.values()], 1)
        return dataclasses.replace(self, metric_names=tuple(examples), example_metrics=rows)

    def save(self, path: Path) -> None:
        """Writes an .npz without pickles, so that a reader sees the old file or the new one."""
        arrays = {
            name: np.asarray(value, str if isinstance(value, tuple) else None)
            for name, value in vars(self).items()
        }
        if not self.metric_names:
            del arrays["metric_names"], arrays["example_metrics"]

        def write(file: BinaryIO) -> None:
            np.savez_compressed(file, allow_pickle=False, kind=np.asarray(self.kind), **arrays)

        replace_file(path, write)

    def check(self) -> None:
        """Raises ValueError for values that cannot be; their forms are checked before."""


@dataclasses.dataclass(frozen=True)
class Predictions(Kept):
    """What a classifier says.

    Attributes:
      label: the class of each example, int32, shape N.
      log_probabilities: natural logarithms, float32, shape N × C.
      class_names: one a class; "0", "1", … where the data name none.
    """

    kind = "classification"
    layout: ClassVar[Layout] = {
        "label": ("iu", "N"),
        "log_probabilities": ("f", "NC"),
        "class_names": ("U", "C"),
    }

    label: np.ndarray
    log_probabilities: np.ndarray
    class_names: tuple[str, ...]

    def check(self) -> None:
        check_range("label", self.label, self.log_probabilities.shape[1])


@dataclasses.dataclass(frozen=True)
class MultiLabel(Kept):
    """What a classifier with any number of labels an example says.

    Attributes:
      label: whether each label is there, bool, shape N × C.
      log_odds: the logits of the labels, float32, shape N × C; a label is predicted where they are > 0.
      class_names: one a label.
    """

    kind = "multi_label"
    layout: ClassVar[Layout] = {"label": ("b", "NC"), "log_odds": ("f", "NC"), "class_names": ("U", "C")}

    label: np.ndarray
    log_odds: np.ndarray
    class_names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Regression(Kept):
    """What a regression says.

    Attributes:
      output: of the model, float32, shape N × D.
      target: that it is compared with, float32, shape N × D.
      target_names: one an output.
    """

    kind = "regression"
    layout: ClassVar[Layout] = {"output": ("f", "ND"), "target": ("f", "ND"), "target_names": ("U", "D")}

    output: np.ndarray
    target: np.ndarray
    target_names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Reconstruction(Kept):
    """What an autoencoder makes of its inputs.

    Attributes:
      error: the mean squared error of each example's values, float32, shape N.
      shown: places in `index` of the examples that are kept in full, int32, shape K: the worst ones first
        in falling order of their error, then some at random.
      num_worst: how many of `shown` are there for their error.
      input: as the model sees it, float32, shape K × that of an example.
      output: in the units of the input, float32, of the same shape.
    """

    kind = "reconstruction"
    layout: ClassVar[Layout] = {
        "error": ("f", "N"),
        "shown": ("iu", "K"),
        "num_worst": ("iu", ""),
        "input": ("f", "K*"),
        "output": ("f", "K*"),
    }

    error: np.ndarray
    shown: np.ndarray
    num_worst: int
    input: np.ndarray
    output: np.ndarray

    def check(self) -> None:
        _check_shown(self.shown, self.num_worst, len(self.index))
        if self.input.shape != self.output.shape:
            raise ValueError(f"input has the shape {self.input.shape}, output {self.output.shape}")


@dataclasses.dataclass(frozen=True)
class LanguageModel(Kept):
    """What a language model makes of its sequences.

    Attributes:
      loss: the sum of the cross-entropies of each sequence's tokens, nats, float32, shape N.
      num_right: how many of its tokens are predicted, int32, shape N.
      num_tokens: how many count, int32, shape N.
      shown: places in `index` of the sequences that are kept in full, as in `Reconstruction`; the worst
        have the highest loss a token.
      num_worst: how many of `shown` are there for their loss.
      token: int32, shape K × T.
      token_loss: of every token but the first, nats, NaN where it does not count, float32,
        shape K × (T - 1).
      token_names: what each token stands for; empty where the data do not say it.
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
        _check_shown(self.shown, self.num_worst, len(self.index))
        if self.token.shape[1] != self.token_loss.shape[1] + 1:
            raise ValueError(f"token has the shape {self.token.shape}, token_loss {self.token_loss.shape}")
        if (self.num_right < 0).any() or (self.num_right > self.num_tokens).any():
            raise ValueError("num_right is not in [0, num_tokens]")
        if self.token_names:
            check_range("token", self.token, len(self.token_names))


@dataclasses.dataclass(frozen=True)
class Outputs(Kept):
    """What any other model puts out.

    Attributes:
      output: float32, shape N × that of an example.
    """

    kind = "outputs"
    layout: ClassVar[Layout] = {"output": ("f", "N*")}

    output: np.ndarray


KINDS: Mapping[str, type[Kept]] = {
    one.kind: one for one in (Predictions, MultiLabel, Regression, Reconstruction, LanguageModel, Outputs)
}


def check_range(name: str, values: np.ndarray, end: int) -> None:
    if values.size and (int(values.min()) < 0 or int(values.max()) >= end):
        raise ValueError(f"{name} is not in [0, {end})")


def _check_shown(shown: np.ndarray, num_worst: int, size: int) -> None:
    check_range("shown", shown, size)
    if len(np.unique(shown)) != len(shown) or not 0 <= num_worst <= len(shown):
        raise ValueError("shown names an example twice, or has fewer than num_worst")
