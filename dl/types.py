"""The types that the modules of `dl` pass to each other.

A *batch* is a dict of arrays whose leading axis is the example. It holds the features of the data set and two
more: `index`, the global index of each example, from which its random key follows, and `mask`, which is False
on padding.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol

import jax
import numpy as np

from dl.metrics import Mean

Params = Any  # the "params" collection of a Linen model: a tree of arrays
ModelState = Mapping[str, Any]  # every other collection, such as batch statistics
Variables = Mapping[str, Any]  # both, as `Module.init` returns them
Batch = dict[str, jax.Array]
Key = jax.Array
Metrics = dict[str, Mean]
Remat = Literal["none", "layers", "dots"]  # what is computed again in the backward pass


class Aux(NamedTuple):
    """The results of a loss function other than the loss.

    Attributes:
      model_state: model state after the batch. In evaluation it is unchanged.
      metrics: metrics of the valid examples of the batch.
    """

    model_state: ModelState
    metrics: Metrics


class LossFn(Protocol):
    """A pure function from parameters and a batch to the loss of the batch's valid examples, and its metrics.

    The loss is a `Mean`: a sum over the counted items (examples, or tokens of sequences of unequal length)
    and their number. Training minimises `Mean.compute()`. The losses of the parts of a batch therefore add up
    to the loss of the batch, also where the parts have different counts. No gradient flows through the count.

    `key` is None in evaluation: dropout is off, and running statistics are used but not updated.
    """

    def __call__(
        self, params: Params, model_state: ModelState, batch: Batch, key: Key | None, /
    ) -> tuple[Mean, Aux]: ...


GradFn = Callable[[LossFn], Callable[..., tuple[tuple[jax.Array, Aux], Params]]]
"""A function from a loss function to a function of the same arguments that returns `((loss, aux), gradient)`.

Here `loss` is a number, `Mean.compute()` of the whole batch, and `gradient` is a tree like the parameters.
The training step gives the `GradFn` a loss that is multiplied by the loss scale. It then divides the loss and
the gradient by that scale, and gives the loss to the optimizer as `value`.
"""


SEGMENT_IDS = "segment_ids"  # feature of tokens: the number of the sequence of each token; 0 is padding

Preprocess = Callable[[Batch], Batch]
Augment = Callable[[Key, Batch], Batch]
"""A function from a random key and ONE example to an example."""


class Source(Protocol):
    """A finite sequence of examples whose rows can be read in any order.

    Constructing a source does no I/O. `__getitem__` may be called from several threads.

    Attributes:
      spec: shape and dtype of ONE example (without a batch axis), by feature name.
    """

    @property
    def spec(self) -> Mapping[str, jax.ShapeDtypeStruct]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the rows `indices`, in that order, stacked along a leading axis."""
        ...


@dataclasses.dataclass(frozen=True)
class Identity:
    """The identity of the data that a result was measured on.

    Attributes:
      name: name of the data set with its config, such as "colours/dark".
      version: version as TFDS writes it, such as "3.0.1". Data without a version have "1.0.0".
      checksum: SHA-256 (hexadecimal) over the decoded images and labels of all official splits, with names,
        shapes and dtypes. For a set that is too large for memory, it is over the description of the set and
        the names and sizes of its shards (or of the files of an image folder). For texts it is over the
        texts and labels of all official splits, and not over their tokens.
      sizes: number of examples in each split as it is used.
      split_rule: how validation or test rows were drawn from train; empty for a plain random draw.
    """

    name: str
    version: str
    checksum: str
    sizes: Mapping[str, int]
    split_rule: str = ""


class Splits(Protocol):
    """The data that an experiment is trained and evaluated on.

    Attributes:
      train: the training examples.
      evaluations: the evaluation splits by name. `test` is evaluated once, at the end of the run. The others
        are evaluated regularly, by default once an epoch.
      identity: identity of the data.
      provenance: where the data were read from, such as `read from the decoded cache in 0.2 s`.
      notice: a warning that a reader needs in order to interpret the results, such as a fallback to other
        data. Its first line is short and is shown beside every result. All of it is shown once. `None` means
        that there is no warning.
      preprocess: function from a stored batch to the model's input, if the experiment does not give one.
        `None` means that the batch is used as it is stored.
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


class BaselineScores(NamedTuple):
    """What a baseline adds to each metric.

    Attributes:
      name: text about the baseline, with the settings that it chose.
      examples: by split and metric, total and weight of each example of the split, in the order of its rows,
        shape N × 2. The metric is Σ total / Σ weight. Metrics have the names and units of the task. The
        weight of a language model's sequence is the number of its tokens that count.
    """

    name: str
    examples: Mapping[str, Mapping[str, np.ndarray]]


Baseline = Callable[[Splits], BaselineScores]
"""A cheap method that a network must beat: it is fitted on the training split and scores the others.

It is a pure function of the data. It may choose settings on the validation split, never on the test split.
`dl.evaluation.baselines` has some.
"""


@dataclasses.dataclass(frozen=True)
class OfInput:
    """A preprocessing of the one feature that the model reads. An `Experiment` sets the name from its task.

    A batch with the feature `segment_ids` is not changed: its input consists of token ids, not of pixels.

    Attributes:
      convert: function from the name of the feature and its stored values to the model's input.
      name: name of the feature. A batch without this feature is not changed.
    """

    convert: Callable[[str, jax.Array], jax.Array]
    name: str = "image"

    def __call__(self, batch: Batch) -> Batch:
        if self.name not in batch or SEGMENT_IDS in batch:
            return batch
        return {**batch, self.name: self.convert(self.name, batch[self.name])}

    def of(self, name: str) -> "OfInput":
        """Returns the same preprocessing of another feature."""
        return dataclasses.replace(self, name=name)
