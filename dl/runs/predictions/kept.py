"""The predictions of a run that are kept: one class for each kind of task. For text see `kept_tokens`.

Shapes: N examples that were kept, M of the whole split, C classes or labels, D outputs, K of the N examples
that are kept in full, Q metrics.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Self

import jax
import numpy as np

from dl.evaluation.outcomes import Outcomes
from dl.system.files import replace_file

MAX_BYTES = 64 * 2**20  # limit for a split; of a larger one a random sample of the examples is kept

Layout = Mapping[str, tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Kept:
    """The fields that every kind has.

    Attributes:
      split: the name of the split.
      num_examples: the number of examples in the split, M. It is larger than N if only a sample is kept.
      index: the row of each example in the split, increasing, int32, shape N.
      metric_names: the names of the Q metrics that are kept for each example; empty if none are kept.
      example_metrics: total and weight of each metric for each example of the split, as the run computed
        them, float32, shape M × Q × 2.
    """

    kind: ClassVar[str]
    # For each array: the letters of its dtype kinds, and the letters of its dimensions. "*" is any number of
    # them.
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
        """Whether the predictions cover every example of the split."""
        return len(self.index) == self.num_examples

    @property
    def sample(self) -> str:
        """Text about which examples are covered."""
        of = f"the {self.split} split"
        if self.is_whole:
            return f"all {self.num_examples:,} examples of {of}"
        return f"a random {len(self.index):,} of the {self.num_examples:,} examples of {of}"

    def with_metrics(self, examples: Mapping[str, np.ndarray]) -> Self:
        """Returns a copy with the metrics of each example, unless these would take too much memory.

        Args:
          examples: for each metric, total and weight of each example of the split, shape M × 2.
        """
        if not examples or sum(rows.nbytes for rows in examples.values()) > MAX_BYTES:
            return self
        rows = np.stack([np.asarray(rows, np.float32) for rows in examples.values()], 1)
        return dataclasses.replace(self, metric_names=tuple(examples), example_metrics=rows)

    def save(self, path: Path) -> None:
        """Writes an .npz file without pickles. The file is replaced in one step."""
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
        """Raises ValueError for invalid values; the shapes are checked before."""


@dataclasses.dataclass(frozen=True)
class Predictions(Kept):
    """Predictions of a classifier.

    Attributes:
      label: the class of each example, int32, shape N.
      log_probabilities: natural logarithms, float32, shape N × C.
      class_names: the name of each class; "0", "1", … if the data do not name them.
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

    @property
    def outcomes(self) -> Outcomes:
        """The outcome of each example, on the host."""
        return jax.device_get(jax.jit(Outcomes.of)(self.log_probabilities, self.label))

    def check(self) -> None:
        check_range("label", self.label, self.log_probabilities.shape[1])


@dataclasses.dataclass(frozen=True)
class ClassificationOutcomes(Kept):
    """Predictions of a classifier with many examples or classes: those of `evaluation.outcomes.Outcomes`.

    Attributes:
      label: the class of each example, int32, shape N.
      predicted: the class with the largest probability, int32, shape N.
      rank: the number of classes that rank above the label, int32, shape N.
      label_log_probability: the natural logarithm of the probability of the label, float32, shape N.
      predicted_log_probability: that of the prediction.
      runner_up_log_probability: that of the best class but the prediction.
      brier: the Brier score of the example, in [0, 2], float32, shape N.
      class_names: the name of each class; "0", "1", … if the data do not name them.
    """

    kind = "classification_outcomes"
    layout: ClassVar[Layout] = {
        **dict.fromkeys(("label", "predicted", "rank"), ("iu", "N")),
        **dict.fromkeys(("label_log_probability", "predicted_log_probability"), ("f", "N")),
        **dict.fromkeys(("runner_up_log_probability", "brier"), ("f", "N")),
        "class_names": ("U", "C"),
    }

    label: np.ndarray
    predicted: np.ndarray
    rank: np.ndarray
    label_log_probability: np.ndarray
    predicted_log_probability: np.ndarray
    runner_up_log_probability: np.ndarray
    brier: np.ndarray
    class_names: tuple[str, ...]

    @property
    def outcomes(self) -> Outcomes:
        """The outcome of each example, on the host."""
        names = [field.name for field in dataclasses.fields(Outcomes)]
        arrays: dict[str, Any] = {name: np.asarray(getattr(self, name)) for name in names}
        return Outcomes(
            **{name: x.astype(np.float32 if x.dtype.kind == "f" else np.int32) for name, x in arrays.items()}
        )

    def check(self) -> None:
        for name in ("label", "predicted", "rank"):
            check_range(name, getattr(self, name), len(self.class_names))


@dataclasses.dataclass(frozen=True)
class MultiLabel(Kept):
    """Predictions of a multi-label classifier.

    Attributes:
      label: whether the example has each label, bool, shape N × C.
      log_odds: the logits of the labels, float32, shape N × C. A label is predicted if its logit is > 0.
      class_names: the name of each label.
    """

    kind = "multi_label"
    layout: ClassVar[Layout] = {"label": ("b", "NC"), "log_odds": ("f", "NC"), "class_names": ("U", "C")}

    label: np.ndarray
    log_odds: np.ndarray
    class_names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Regression(Kept):
    """Predictions of a regression.

    Attributes:
      output: the outputs of the model, float32, shape N × D.
      target: the targets, float32, shape N × D.
      target_names: the name of each output.
    """

    kind = "regression"
    layout: ClassVar[Layout] = {"output": ("f", "ND"), "target": ("f", "ND"), "target_names": ("U", "D")}

    output: np.ndarray
    target: np.ndarray
    target_names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Reconstruction(Kept):
    """Reconstructions of an autoencoder.

    Attributes:
      error: the mean squared error of each example, float32, shape N.
      shown: positions in `index` of the examples that are kept in full, int32, shape K: first those with the
        largest errors, in falling order, then a random sample.
      num_worst: the number of examples in `shown` that have the largest errors.
      input: the inputs of the model, float32, shape K × the shape of an example.
      output: the outputs, in the units of the input, float32, of the same shape.
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
        check_shown(self.shown, self.num_worst, len(self.index))
        if self.input.shape != self.output.shape:
            raise ValueError(
                f"input has the shape {self.input.shape}, but output has the shape {self.output.shape}"
            )


@dataclasses.dataclass(frozen=True)
class Outputs(Kept):
    """Outputs of any other model.

    Attributes:
      output: the outputs, float32, shape N × the shape of the output of an example.
    """

    kind = "outputs"
    layout: ClassVar[Layout] = {"output": ("f", "N*")}

    output: np.ndarray


def check_range(name: str, values: np.ndarray, end: int, low: int = 0) -> None:
    """Raises ValueError for a value outside of [low, end)."""
    if values.size and (int(values.min()) < low or int(values.max()) >= end):
        raise ValueError(f"{name} is not in [{low}, {end})")


def check_shown(shown: np.ndarray, num_worst: int, size: int) -> None:
    """Raises ValueError if `shown` and `num_worst` are not those of `size` examples."""
    check_range("shown", shown, size)
    if len(np.unique(shown)) != len(shown) or not 0 <= num_worst <= len(shown):
        raise ValueError("shown names an example twice, or has fewer than num_worst")
