"""The types that the modules of `dl` hand to each other.

A *batch* is a dict of arrays whose leading axis is the example: the features of the data set and two more,
`index` (the global index of each example, which keys its randomness) and `mask` (False on padding).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from dl.metrics import Mean

Params = Any  # the "params" collection of a Linen model: a tree of arrays
ModelState = Mapping[str, Any]  # every other collection, such as batch statistics
Variables = Mapping[str, Any]  # both, as `Module.init` returns them
Batch = dict[str, jax.Array]
Key = jax.Array
Metrics = dict[str, Mean]


class Aux(NamedTuple):
    """What a loss function returns beside the loss.

    Attributes:
      model_state: after the batch; in evaluation as it was given.
      metrics: of the batch's valid examples.
    """

    model_state: ModelState
    metrics: Metrics


class LossFn(Protocol):
    """A pure function from parameters and a batch to the loss of the batch's valid examples, and its metrics.

    The loss is a `Mean`: the sum over what was counted (examples, or tokens of sequences of unequal length)
    and how many there were. What is minimised is `Mean.compute()`. So the losses of the parts of a batch add
    up to that of the batch, whatever each part counts. No gradient flows through what is counted.

    `key` is None in evaluation: dropout is off and running statistics are used, not updated.
    """

    def __call__(
        self, params: Params, model_state: ModelState, batch: Batch, key: Key | None, /
    ) -> tuple[Mean, Aux]: ...


GradFn = Callable[[LossFn], Callable[..., tuple[tuple[jax.Array, Aux], Params]]]
"""Turns a loss into a function with the same arguments that returns `((loss, aux), gradient)`.

There `loss` is a number, `Mean.compute()` of the whole batch, and `gradient` a tree like the parameters. The
training step multiplies the `Mean` by the loss scale before a `GradFn` sees it, divides loss and gradient by
that scale, and hands the loss to the optimizer as `value`.
"""


Preprocess = Callable[[Batch], Batch]
Augment = Callable[[Key, Batch], Batch]
"""From a key and ONE example to an example."""


class Source(Protocol):
    """A finite sequence of examples that any rows can be read from, in any order.

    Building one does no I/O. `__getitem__` may be called from several threads.

    Attributes:
      spec: shape and dtype of ONE example (no batch axis), by feature name.
    """

    @property
    def spec(self) -> Mapping[str, jax.ShapeDtypeStruct]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the rows `indices`, in that order, stacked along a leading axis."""
        ...


@dataclasses.dataclass(frozen=True)
class Identity:
    """Which data a number was measured on.

    Attributes:
      name: with its config, as in "colours/dark".
      version: as TFDS writes it, "3.0.1"; "1.0.0" of data that have none.
      checksum: SHA-256 (hex) over the decoded images and labels of all official splits, with names,
        shapes and dtypes. Of a set too large for memory, over its description and the names and
        sizes of its shards (of a folder of images: of its files).
      sizes: number of examples in each split as used.
      split_rule: how rows were taken from train, where they were; empty for a plain random draw.
    """

    name: str
    version: str
    checksum: str
    sizes: Mapping[str, int]
    split_rule: str = ""


class Splits(Protocol):
    """What an experiment trains and is judged on.

    Attributes:
      train: the examples that are trained on.
      evaluations: by name; `test` is read once, at the end of the run, the others every epoch.
      identity: which data it is.
      provenance: how the data came, such as `read from the decoded cache in 0.2 s`.
      notice: what a person must know before trusting a figure, such as a fallback to other data. Its first
        line is short and stands beside every figure, all of it once where a reader begins.
      preprocess: from a stored batch to the model's input, where an experiment states no other. None: as it
        is stored.
    """

    @property
    def train(self) -> Source: ...
    @property
    def evaluations(self) -> Mapping[str, Source]: ...
    @property
    def identity(self) -> Identity: ...
    @property
    def provenance(self) -> str: ...
    @property
    def notice(self) -> str | None: ...
    @property
    def preprocess(self) -> Preprocess | None: ...

    def steps(self, num_epochs: int, batch_size: int, *, at_least: int = 1) -> int:
        """Returns how many steps a number of passes over the training split takes.

        The last batch of each pass may hold fewer examples and counts as a whole step.
        `dl.data.steps.CountsSteps` implements this for all splits.

        Args:
          num_epochs: passes over the training split.
          batch_size: examples in each step.
          at_least: smallest number of steps. Whole passes are added until it is reached.

        Raises:
          UserError: an argument is not a positive whole number, or the training split has no examples.
        """
        ...


@dataclasses.dataclass(frozen=True)
class OfInput:
    """A preprocessing of the one feature that the model reads: an `Experiment` puts in that of its task.

    Attributes:
      convert: from the feature's name and its stored values to the model's input.
      name: of the feature; a batch without it stays as it is.
    """

    convert: Callable[[str, jax.Array], jax.Array]
    name: str = "image"

    def __call__(self, batch: Batch) -> Batch:
        if self.name not in batch:
            return batch
        return {**batch, self.name: self.convert(self.name, batch[self.name])}

    def of(self, name: str) -> "OfInput":
        """Returns the same preprocessing of another feature."""
        return dataclasses.replace(self, name=name)
