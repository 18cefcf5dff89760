"""What a split measures: the mean of each metric, and how far its examples scatter about it."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from dl.data.pipeline import Batches
from dl.evaluation.spread import Spread
from dl.metrics import MetricTable
from dl.runs.log import Averages
from dl.training.signals import StopSignals
from dl.types import Batch, Variables

# Steps under way before their metrics are read: enough to keep a device busy, few enough that the bar
# tells the truth and that batches do not pile up in memory.
MAX_IN_FLIGHT = 4


class Evaluation(NamedTuple):
    """What an evaluation of a split has measured, by metric; of a population arrays have a leading axis.

    Attributes:
      means: over the split, every example counted once.
      spreads: of what the examples add to them; of a metric that does not tell it there is none.
      examples: total and weight of each example, float32, shape N × 2, in the order of the split's rows; only
        where they were asked for.
    """

    means: dict[str, np.ndarray]
    spreads: dict[str, Spread]
    examples: dict[str, np.ndarray]


def evaluate(
    eval_step: Callable[[Variables, Batch], MetricTable],
    variables: Variables,
    batches: Batches,
    stop: StopSignals | None = None,
    keep_examples: bool = False,
) -> Evaluation | None:
    """Evaluates a split; None if a signal came.

    Args:
      eval_step: from variables and a batch to its metrics.
      variables: of the model.
      batches: of the split.
      stop: asked after each batch.
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
        if stop is not None and stop.received:
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
    """Yields the outputs in order, each after `lag` later ones were asked for."""
    pending: deque[Any] = deque()
    for output in outputs:
        pending.append(output)
        if len(pending) > lag:
            yield pending.popleft()
    yield from pending
