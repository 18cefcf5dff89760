"""Means of metrics over a split."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from dl.data.pipeline import Batches
from dl.log import Averages
from dl.metrics import MetricTable
from dl.signals import StopSignals
from dl.types import Batch, Variables

# Steps under way before their metrics are read: enough to keep a device busy, few enough that the bar
# tells the truth and that batches do not pile up in memory.
MAX_IN_FLIGHT = 4


def evaluate(
    eval_step: Callable[[Variables, Batch], MetricTable],
    variables: Variables,
    batches: Batches,
    stop: StopSignals | None = None,
) -> dict[str, np.ndarray] | None:
    """Returns the mean of each metric over a split, every example counted once; None if a signal came."""
    averages = Averages()
    outputs = (eval_step(variables, batch) for batch in batches.iterate(0, batches.steps_per_epoch))
    for metrics in _lagged(outputs, MAX_IN_FLIGHT):
        averages.add(jax.device_get(metrics))
        if stop is not None and stop.received:
            return None
    return averages.compute()


def _lagged(outputs: Iterable[Any], lag: int) -> Iterator[Any]:
    """Yields the outputs in order, each after `lag` later ones were asked for."""
    pending: deque[Any] = deque()
    for output in outputs:
        pending.append(output)
        if len(pending) > lag:
            yield pending.popleft()
    yield from pending
