"""The contract of a task: three pure functions, in the style of the optimizers of optax."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax

from dl.sharding import Rules
from dl.task.decoder import Decoder
from dl.types import Augment, Batch, Key, LossFn, ModelState, Variables

Name = Literal[
    "classification",
    "multi_label",
    "regression",
    "reconstruction",
    "language_model",
    "masked_language_model",
    "sequence_to_sequence",
    "tagging",
]

FRACTION = "fraction"  # the unit of a metric that is shown in percent


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of task, as the builder of the task states it.

    It alone decides which predictions of a run are kept, the units of its metrics, and the texts of its
    report. Neither the name of a metric nor a dtype decides any of these.

    Attributes:
      name: name of the kind.
      target: name of the feature that the outputs are compared with. A reconstruction uses its input.
      units: unit of each metric, such as nats.
      headline: name of the most important metric of a run.
      padding_id: for a language model, the token that is not counted. `None` means that every token counts.
        For a sequence-to-sequence task, the token after the end of a sequence.
      is_binary: for a reconstruction, whether the outputs are logits of values in [0, 1].
      start_id: for a sequence-to-sequence task, the token from which the first target is predicted.
      end_id: for a sequence-to-sequence task, the last token of every target sequence.
      corrupt: function that corrupts one example before it is evaluated, as `Experiment.augment` corrupts it
        in training. `None` means that the examples are evaluated as they are.
    """

    name: Name
    target: str
    units: Mapping[str, str]
    headline: str
    padding_id: int | None = None
    is_binary: bool = False
    start_id: int | None = None
    end_id: int | None = None
    corrupt: Augment | None = None

    @property
    def words(self) -> str:
        """The name of the kind as it is written in a sentence."""
        words = {
            "multi_label": "multi-label classification",
            "sequence_to_sequence": "sequence-to-sequence task",
        }
        return words.get(self.name, self.name.replace("_", " "))

    @property
    def reads_tokens(self) -> bool:
        """Whether the model's input consists of token ids, which must not be decoded like pixels.

        A classification may read tokens or images. `types.OfInput` tells them apart by the segment ids.
        """
        return self.name in ("language_model", "masked_language_model", "sequence_to_sequence", "tagging")


class Task(NamedTuple):
    """A learning task: the initial variables, the loss that is minimised, and the outputs of the model.

    The builders of `dl.task` make a task from a model. A task can also be written by hand, as `Task(init=...,
    loss=..., predict=...)`. A method that changes the loss of a task returns `task._replace(loss=...)`. All
    three functions get a batch after the preprocessing of the experiment.

    Attributes:
      init: function from a random key and a batch to the initial variables. Only the shapes and dtypes of the
        batch matter.
      loss: function from parameters, the other variables, a batch and a random key to a `Mean` and the
        metrics; see `types.LossFn`. The key is None in evaluation.
      predict: function from variables and a batch to the outputs, whose leading axis is the example. `None`
        means that the task has no outputs. Then no predictions are kept.
      kind: kind of the task. `None` means that it is not stated. Then the report uses neutral terms.
      input_name: name of the feature that the model reads. If it is an image, it is decoded and shown.
      decoder: functions that write sequences token by token. `None` means that the model cannot write.
      intermediates: function from variables and a batch to what the modules of the model sow in evaluation,
        such as attention weights. `None` means that nothing is known of its modules.
      sharding_rules: how the parameters are split over the axis `tensor` of a mesh; see `dl.sharding.Rule`.
      adapters: the configuration of low-rank adapters, `methods.lora.LoRA`, if `with_lora` added them.
    """

    init: Callable[[Key, Batch], Variables]
    loss: LossFn
    predict: Callable[[Variables, Batch], jax.Array] | None = None
    kind: Kind | None = None
    input_name: str = "image"
    decoder: Decoder | None = None
    intermediates: Callable[[Variables, Batch], ModelState] | None = None
    sharding_rules: Rules = ()
    adapters: Any = None

    def with_uses(self, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> "Task":
        """Returns the task with every function of variables wrapped: what uses a trained model.

        Args:
          wrap: returns a function for `predict`, `intermediates`, and `extend` and `encode` of the decoder,
            whose first argument is the variables.
        """

        def wrapped(function: Callable[..., Any] | None) -> Any:
            return None if function is None else wrap(function)

        decoder = self.decoder
        if decoder is not None:
            decoder = decoder._replace(extend=wrap(decoder.extend), encode=wrapped(decoder.encode))
        return self._replace(
            predict=wrapped(self.predict), intermediates=wrapped(self.intermediates), decoder=decoder
        )


def kind_facts(kind: Kind | None) -> dict[str, Any]:
    """Returns the entries `kind` (null if it is not stated), `units` and `headline` of result.json."""
    if kind is None:
        return {"kind": None, "units": {}, "headline": None}
    return {"kind": kind.name, "units": dict(kind.units), "headline": kind.headline}
