"""Decisions after an evaluation: whether it is the best one, and whether the run stops early.

Pure functions on the host; `session` acts on the decisions.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from dl.stopping import Best, KeepBest, MetricsOfSplits, StopAt
from dl.training.progress import Progress


class Choice(NamedTuple):
    """The decisions after an evaluation.

    Attributes:
      best: the best evaluation so far.
      is_taken: whether this evaluation is the best one, so that its variables are kept; the shape of a
        metric.
      evaluations: the metrics that the run would end with now, by split.
      intervals: the intervals of these metrics, by split and metric.
      stopped_early: why the run stops early; empty if it continues.
    """

    best: Best
    is_taken: np.ndarray
    evaluations: dict[str, dict[str, Any]]
    intervals: dict[str, dict[str, Any]]
    stopped_early: str


def choose(
    keep_best: KeepBest | None,
    stop_at: StopAt | None,
    progress: Progress,
    metrics: MetricsOfSplits,
    intervals: dict[str, dict[str, Any]],
    step: int,
) -> Choice:
    """Returns the decisions after an evaluation. An evaluation before the first step is never the best.

    Args:
      keep_best: the rule that says which evaluation is the best. `None` means the last one.
      stop_at: the value of a metric at which the run stops. `None` means that the run does not stop early.
      progress: the progress of the run before this evaluation.
      metrics: the metrics of this evaluation by split, and of `train` if there were steps since the last one.
      intervals: the intervals of this evaluation, by split and metric.
      step: the step of this evaluation.
    """
    best, is_taken = progress.best, np.zeros((), bool)
    evaluations = {split: dict(of_split) for split, of_split in metrics.items() if split != "train"}
    is_judged = keep_best is not None and step > 0
    if keep_best is not None and is_judged:
        best, is_taken = best.after(keep_best, metrics, step)
        if is_taken.any():
            evaluations = _where(is_taken, evaluations, progress.evaluations)
        else:
            evaluations, intervals = progress.evaluations, progress.intervals
    stopped_early = progress.stopped_early
    if keep_best is not None and is_judged and best.is_over(keep_best):
        stopped_early = (
            f"{keep_best.split} {keep_best.metric} has not improved for {keep_best.patience} evaluations"
        )
    elif stop_at is not None and stop_at.split in metrics and stop_at.is_met(metrics):
        stopped_early = f"{stop_at.split} {stop_at.metric} has reached {stop_at.value:g}"
    return Choice(best, is_taken, evaluations, intervals, stopped_early)


def _where(
    is_taken: np.ndarray, new: Mapping[str, Mapping[str, Any]], old: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Returns the new metrics where they are taken, else the old ones."""
    return {
        split: {
            name: np.where(is_taken, value, old.get(split, {}).get(name, value))
            for name, value in of_split.items()
        }
        for split, of_split in new.items()
    }
