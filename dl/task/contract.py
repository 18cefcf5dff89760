"""What a task is: three pure functions, as an optimizer of optax is two."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax

from dl.types import Batch, Key, LossFn, Variables

Name = Literal["classification", "multi_label", "regression", "reconstruction", "language_model"]

FRACTION = "fraction"  # the unit of a share, which is shown in percent


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of task, as the builder of the task states it.

    Nothing else decides what is kept of a run's predictions, in which units its metrics are and which words
    its report uses: neither the name of a metric nor a dtype.

    Attributes:
      name: which kind it is.
      target: the feature that the outputs are compared with; the input itself for a reconstruction.
      units: of each metric, such as nats.
      headline: the metric that a run stands for.
      padding_id: of a language model, the token that is not counted; None: every token counts.
      is_binary: of a reconstruction, whether the outputs are logits of values in [0, 1].
    """

    name: Name
    target: str
    units: Mapping[str, str]
    headline: str
    padding_id: int | None = None
    is_binary: bool = False

    @property
    def words(self) -> str:
        """The name as a noun in a sentence."""
        return "multi-label classification" if self.name == "multi_label" else self.name.replace("_", " ")

    @property
    def reads_tokens(self) -> bool:
        """Whether the model's input are the numbers of tokens, which no decoding of pixels may touch."""
        return self.name == "language_model"


class Task(NamedTuple):
    """What is learnt: where the variables start, what is minimised, and what the model puts out.

    The builders of `dl.task` make one of a model. A task written by hand is `Task(init=..., loss=...,
    predict=...)`. A method that changes the loss of a task returns `task._replace(loss=...)`, which keeps the
    rest. All three functions see a batch after the preprocessing of the experiment.

    Attributes:
      init: from a key and a batch to the initial variables. Only the shapes and dtypes of the batch matter.
      loss: from parameters, the other variables, a batch and a key to a `Mean` and its metrics; see
        `types.LossFn`. The key is None in evaluation.
      predict: from variables and a batch to the outputs, with the example as their leading axis. None: the
        task has no outputs, and no predictions are kept.
      kind: what kind of task it is. None: it is not stated, and units and words are neutral.
      input_name: the feature that the model reads. An image is shown and decoded by that name.
    """

    init: Callable[[Key, Batch], Variables]
    loss: LossFn
    predict: Callable[[Variables, Batch], jax.Array] | None = None
    kind: Kind | None = None
    input_name: str = "image"


def kind_facts(kind: Kind | None) -> dict[str, Any]:
    """Returns what result.json says of a task: its `kind` (null: none is stated), `units` and `headline`."""
    if kind is None:
        return {"kind": None, "units": {}, "headline": None}
    return {"kind": kind.name, "units": dict(kind.units), "headline": kind.headline}
