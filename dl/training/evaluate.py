"""The evaluation of a split: the mean of each metric, and the spread over the examples."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from dl.data.pipeline import Batches
from dl.evaluation.spread import Spread
from dl.metrics import MetricTable
from dl.runs.log import Averages
from dl.training.processes import Alone, Together
from dl.types import Batch, Variables

# Number of steps that are in flight before their metrics are read. This keeps a device busy; a larger number
# would delay the progress bar and keep more batches in memory.
MAX_IN_FLIGHT = 4


class Evaluation(NamedTuple):
    """What an evaluation of a split has measured, by metric; of a population arrays have a leading axis.

    Attributes:
      means: the mean over the split. Every example counts once.
      spreads: the spread over the examples. Metrics that do not report a value per example are left out.
      examples: total and weight of each example, float32, shape N × 2, in the order of the split's rows; only
        if they were requested.
    """

    means: dict[str, np.ndarray]
    spreads: dict[str, Spread]
    examples: dict[str, np.ndarray]


def evaluate(
    eval_step: Callable[[Variables, Batch], MetricTable],
    variables: Variables,
    batches: Batches,
    together: Together | Alone | None = None,
    keep_examples: bool = False,
) -> Evaluation | None:
    """Evaluates a split; returns `None` if a signal arrived.

    Args:
      eval_step: returns the metrics for variables and a batch.
      variables: the variables of the model.
      batches: the batches of the split.
      together: the decisions of all processes; whether the run stops is checked after each batch.
      keep_examples: whether to return what each example adds to each metric.
    """
    averages = Averages()
    spreads: dict[str, Spread] = {}
    kept: list[np.ndarray] = []
    outputs = (eval_step(variables, batch) for batch in batches.iterate(0, batches.steps_per_epoch))
    for step, output in enumerate(_lagged(outputs, MAX_IN_FLIGHT)):
        metrics = jax.device_get(output)
        averages.add(metrics)
        _, is_example_B = batches.rows(step)
        examples = metrics.examples[..., is_example_B, :]
        for place, name in enumerate(metrics.names):
            spread = Spread.of(*np.moveaxis(examples[..., place, :, :], -1, 0))
            spreads[name] = spreads[name] + spread if name in spreads else spread
        if keep_examples:
            kept.append(examples)
        if together is not None and together.is_stopped():
            return None
    known = {name: spread for name, spread in spreads.items() if spread.is_known}
    rows = np.concatenate(kept, -2) if kept else None
    return Evaluation(
        averages.compute(),
        known,
        {}
        if rows is None
        else {name: rows[..., place, :, :] for place, name in enumerate(spreads) if name in known},
    )


def _lagged(outputs: Iterable[Any], lag: int) -> Iterator[Any]:
    """Yields the outputs in order, each after `lag` later ones were requested."""
    pending: deque[Any] = deque()
    for output in outputs:
        pending.append(output)
        if len(pending) > lag:
            yield pending.popleft()
    yield from pending
