"""A trace of a few training steps, to be looked at in Perfetto or XProf."""

from pathlib import Path
from typing import Any

import jax

from dl.runs.console import Console
from dl.training.state import TrainState
from dl.training.step import TrainStep
from dl.types import Batch

FIRST, NUM_STEPS = 5, 5  # the first steps warm up caches and are left out


class Profiler:
    """Traces the steps 6 to 10 that a process makes; of fewer steps those from the sixth on.

    Attributes:
      folder: that the trace is written to, by `jax.profiler`.
    """

    def __init__(self, folder: Path, console: Console):
        self.folder = folder
        self._console = console
        self._num_done = 0
        self._is_tracing = False
        self._is_watching = False

    def watch(self, train_step: TrainStep) -> TrainStep:
        """Returns the step, traced in its turn."""
        self._is_watching = True

        def step(state: TrainState, batch: Batch) -> Any:
            if self._num_done == FIRST:
                jax.block_until_ready(state)
                jax.profiler.start_trace(self.folder)
                self._is_tracing = True
            result = train_step(state, batch)
            self._num_done += 1
            if self._num_done == FIRST + NUM_STEPS:
                jax.block_until_ready(result)
                self.close()
            return result

        return step

    def close(self) -> None:
        """Writes the trace, unless that is done."""
        if self._is_tracing:
            self._is_tracing = self._is_watching = False
            jax.profiler.stop_trace()
            self._console.line(f"profile of {self._num_done - FIRST} steps: {self.folder}")
        elif self._is_watching and self._num_done <= FIRST:
            self._is_watching = False
            self._console.line(f"no profile: this start made no more than {FIRST} steps")
