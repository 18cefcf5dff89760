"""What kind of task a loss function measures, as the builder that made it states it.

Nothing else decides what is kept of a run's predictions, in which units its figures are and which words its
report uses: neither the name of a metric nor a dtype. A loss function written by hand states nothing; then
words and units are neutral.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax

from dl.types import Aux, Batch, Key, LossFn, ModelState, Params

Name = Literal["classification", "multi_label", "regression", "reconstruction", "language_model"]

FRACTION = "fraction"  # the unit of a share, which is shown in percent


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of task.

    Attributes:
      name: which.
      input_name: the feature that the model reads.
      target: the feature that its outputs are compared with; the input itself for a reconstruction.
      units: of each metric, such as nats.
      headline: the metric that a run stands for.
      padding_id: of a language model, the token that is not counted; None: every token counts.
      is_binary: of a reconstruction, whether the outputs are logits of values in [0, 1].
    """

    name: Name
    input_name: str
    target: str
    units: Mapping[str, str]
    headline: str
    padding_id: int | None = None
    is_binary: bool = False

    @property
    def reads_tokens(self) -> bool:
        """Whether the model's input are the numbers of tokens, which no decoding of pixels may touch."""
        return self.name == "language_model"


@dataclasses.dataclass(frozen=True, eq=False)
class StatedLoss:
    """A loss function that says what kind of task it measures."""

    loss_fn: LossFn
    kind: Kind

    def __call__(
        self, params: Params, model_state: ModelState, batch: Batch, key: Key | None, /
    ) -> tuple[jax.Array, Aux]:
        return self.loss_fn(params, model_state, batch, key)


def kind_of(loss_fn: LossFn) -> Kind | None:
    """Returns the kind of task that a loss function states; None if it states none."""
    return getattr(loss_fn, "kind", None)


def like(loss_fn: LossFn, original: LossFn) -> LossFn:
    """Returns `loss_fn`, which wraps `original` and measures the same kind of task."""
    kind = kind_of(original)
    return loss_fn if kind is None else StatedLoss(loss_fn, kind)


def kind_facts(loss_fn: LossFn) -> dict[str, Any]:
    """Returns what result.json says of a task: its `kind` (null: none is stated), `units` and `headline`."""
    kind = kind_of(loss_fn)
    if kind is None:
        return {"kind": None, "units": {}, "headline": None}
    return {"kind": kind.name, "units": dict(kind.units), "headline": kind.headline}
