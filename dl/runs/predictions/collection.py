"""The collection of what is kept of each example of a split, and of a few examples in full."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dl.data.permutation import random_order
from dl.data.pipeline import Batches
from dl.data.source import ArraySource
from dl.experiment import Experiment
from dl.runs.predictions.collect import collect_outputs
from dl.runs.predictions.kept import MAX_BYTES
from dl.task import Kind
from dl.types import Batch, Variables

MAX_SHOWN = 256  # examples that are kept in full: an eighth with the largest errors, the others at random
_ROW = "row_in_split"
_SAMPLE_KEY = (0, 2**62)  # differs from the keys of epochs, (seed, epoch)


Keep = Callable[[jax.Array, Batch], dict[str, jax.Array]]
"""From a model's outputs and the preprocessed batch to what is kept of each example."""


@dataclasses.dataclass(frozen=True)
class Collection:
    """The arguments that every kind needs to collect its predictions.

    Attributes:
      experiment: the experiment of the run.
      variables: the variables that the run ended with.
      batches: the batches of the split, in the order of its rows.
      mesh: the devices.
      split: the name of the split.
      is_cut_short: whether a signal has arrived.
      outputs: function from variables and a stored batch to the outputs and the batch that the model read.
    """

    experiment: Experiment
    variables: Variables
    batches: Batches
    mesh: Mesh
    split: str
    is_cut_short: Callable[[], bool]
    outputs: Callable[[Variables, Batch], tuple[jax.Array, Batch]]

    @property
    def kind(self) -> Kind:
        kind = self.experiment.task.kind
        assert kind is not None
        return kind

    def collect(self, keep: Keep) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Returns the arguments of every `Kept`, and `keep` of each example; `None` after an interruption."""
        size, num_bytes = len(self.batches.source), self.bytes_per_example(keep)
        rows = np.arange(size, dtype=np.int32)
        if size * num_bytes > MAX_BYTES:
            rows = np.sort(random_order(size, *_SAMPLE_KEY)[: max(1, MAX_BYTES // num_bytes)])
        found = collect_outputs(
            self._kept(keep), self.variables, self.batches, self.mesh, rows, self.is_cut_short
        )
        if found is None:
            return None
        return {"split": self.split, "num_examples": size, "index": rows.astype(np.int32)}, found

    def collect_in_full(
        self, keep: Keep, index: np.ndarray, badness: np.ndarray
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns `shown` and `num_worst`, and `keep` of the shown examples.

        Args:
          keep: returns what is kept of each example for outputs and a preprocessed batch.
          index: the rows of the examples.
          badness: the error of each example. Those with the largest error are shown; NaN is the largest.
        """
        order = np.argsort(-np.nan_to_num(badness, nan=np.inf), kind="stable")
        num_bytes = self.bytes_per_example(keep)
        most = max(1, min(MAX_SHOWN, MAX_BYTES // num_bytes))
        num_worst = min(max(1, most // 8), len(order))
        rest = order[num_worst:]
        at_random = rest[random_order(len(rest), *_SAMPLE_KEY)[: most - num_worst]] if len(rest) else rest
        shown = np.concatenate([order[:num_worst], np.sort(at_random)]).astype(np.int32)
        rows = index[shown]
        source = ArraySource({**self.batches.source[rows], _ROW: rows.astype(np.int32)})
        batches = Batches(source, self.batches.batch_size, self.mesh)
        kept = self._kept(keep)

        def of_rows(variables: Variables, batch: Batch) -> dict[str, jax.Array]:
            # The random draws of an example follow from its row in the split.
            batch = dict(batch)
            batch["index"] = batch.pop(_ROW)
            return kept(variables, batch)

        found = collect_outputs(of_rows, self.variables, batches, self.mesh)
        return {"shown": shown, "num_worst": num_worst}, found

    def shapes(self, keep: Keep) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns shapes and dtypes of what is kept of a batch. Nothing is computed."""
        batch = jax.eval_shape(lambda: self.batches[0])
        return jax.eval_shape(self._kept(keep), self.variables, batch)

    def bytes_per_example(self, keep: Keep) -> int:
        """Returns the bytes that are kept of an example, at least 1."""
        leaves = self.shapes(keep).values()
        return max(1, sum(leaf.dtype.itemsize * math.prod(leaf.shape[1:]) for leaf in leaves))

    def _kept(self, keep: Keep) -> Callable[[Variables, Batch], dict[str, jax.Array]]:
        return lambda variables, batch: keep(*self.outputs(variables, batch))
