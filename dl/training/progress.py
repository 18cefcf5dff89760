"""What the host knows of a run beside its state: running means, clocks, what was evaluated."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from dl.runs.log import Averages
from dl.stopping import Best


class Stopwatch:
    """Seconds of wall time, over several spells.

    Attributes:
      seconds: so far.
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


_STOPPED = ("waiting", "compiling", "evaluating", "saving")  # watches that run for a spell only
_RENAMED = {"reported_step": "evaluated_step"}  # from what older versions wrote


@dataclasses.dataclass
class Progress:
    """Saved with the state, so that a resumed run logs what an uninterrupted one logs.

    Attributes:
      line: means since the last line of metrics.
      epoch: means since the last evaluation.
      training: time spent in training steps.
      waiting: the part of it that was spent on the next batch.
      compiling: time spent in compiling them and the eval step, at every start.
      evaluating: time spent in evaluation.
      saving: time that training waited for checkpoints.
      total: time since the start, all of these included.
      log_size: bytes of metrics.jsonl.
      log_digest: the SHA-256 of these bytes.
      log_start: the step whose lines are the first in it; more than 0 if those before were lost.
      evaluated_step: the step of the last evaluation, -1 before the first.
      evaluations: the metrics of the last evaluation, by split; of the best one where that is kept.
      intervals: of the same evaluation, of one run: by split and metric its bounds and its method.
      shares: by metric, whether it lies in [0, 1] by what it counts.
      best: which evaluation was the best.
      frozen_digest: of what is frozen, at the start; empty where nothing is.
      stopped_early: why the run ended before its last step; empty while it goes on.
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
        """Reads what `to_json` has written, in this version or an older one."""
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
