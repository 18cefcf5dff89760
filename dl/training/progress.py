"""The progress of a run on the host, beside its state: running means, clocks, evaluations."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from dl.runs.log import Averages
from dl.stopping import Best


class Stopwatch:
    """A stopwatch of wall time that can be started several times.

    Attributes:
      seconds: the elapsed time, in seconds.
    """

    def __init__(self, seconds: float = 0.0, *, is_running: bool = False):
        self._before = seconds
        self._since = time.monotonic() if is_running else None

    @property
    def seconds(self) -> float:
        return self._before + (0.0 if self._since is None else time.monotonic() - self._since)

    def start(self) -> None:
        self._before, self._since = self.seconds, time.monotonic()

    def stop(self) -> None:
        self._before, self._since = self.seconds, None

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        self.start()
        try:
            yield
        finally:
            self.stop()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        self.stop()
        yield
        self.start()


_STOPPED = ("waiting", "compiling", "evaluating", "saving")  # watches that do not run all the time
_RENAMED = {"reported_step": "evaluated_step"}  # keys of older versions


@dataclasses.dataclass
class Progress:
    """The progress, which is saved with the state: a resumed run logs the same as an uninterrupted run.

    Attributes:
      line: the means since the last line of metrics.
      epoch: the means since the last evaluation.
      training: time spent in training steps.
      waiting: the part of the training time that was spent on waiting for batches.
      compiling: time spent in compilation, at every start.
      evaluating: time spent in evaluation.
      saving: time that training waited for checkpoints.
      total: time since the start, including all other times.
      log_size: the size of metrics.jsonl, in bytes.
      log_digest: the SHA-256 of these bytes.
      log_start: the step of the first line in the log; more than 0 if earlier lines were lost.
      evaluated_step: the step of the last evaluation, -1 before the first.
      evaluations: the metrics of the last evaluation by split, or of the best evaluation if it is kept.
      intervals: bounds and method of each interval of that evaluation, by split and metric; for one run only.
      shares: for each metric, whether it is a proportion in [0, 1].
      best: the best evaluation.
      frozen_digest: the digest of the frozen variables at the start; empty if nothing is frozen.
      stopped_early: why the run ended before its last step; empty if it did not.
    """

    line: Averages = dataclasses.field(default_factory=Averages)
    epoch: Averages = dataclasses.field(default_factory=Averages)
    training: Stopwatch = dataclasses.field(default_factory=Stopwatch)
    waiting: Stopwatch = dataclasses.field(default_factory=Stopwatch)
    compiling: Stopwatch = dataclasses.field(default_factory=Stopwatch)
    evaluating: Stopwatch = dataclasses.field(default_factory=Stopwatch)
    saving: Stopwatch = dataclasses.field(default_factory=Stopwatch)
    total: Stopwatch = dataclasses.field(default_factory=lambda: Stopwatch(is_running=True))
    log_size: int = 0
    log_digest: str = ""
    log_start: int = 0
    evaluated_step: int = -1
    evaluations: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    intervals: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    shares: dict[str, bool] = dataclasses.field(default_factory=dict)
    best: Best = dataclasses.field(default_factory=lambda: Best.none_yet(1))
    frozen_digest: str = ""
    stopped_early: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            **vars(self),
            "line": self.line.to_json(),
            "epoch": self.epoch.to_json(),
            **{name: watch.seconds for name, watch in vars(self).items() if isinstance(watch, Stopwatch)},
            "evaluations": {
                split: {name: np.asarray(value).tolist() for name, value in metrics.items()}
                for split, metrics in self.evaluations.items()
            },
            "best": self.best.to_json(),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Progress":
        """Reads the JSON value that `to_json` returned in this version or an older one."""
        values = {_RENAMED.get(name, name): value for name, value in values.items()}
        objects = {
            "line": Averages(values["line"]),
            "epoch": Averages(values["epoch"]),
            **{name: Stopwatch(values.get(name, 0.0)) for name in _STOPPED},
            "training": Stopwatch(values["training"]),
            "total": Stopwatch(values["total"], is_running=True),
            "best": Best(**values["best"]),
        }
        return cls(**{**values, **objects})
