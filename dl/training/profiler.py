"""A profile of a few training steps, for Perfetto or XProf."""

from pathlib import Path
from typing import Any

import jax

from dl.runs.console import Console
from dl.training.state import TrainState
from dl.training.step import TrainStep
from dl.types import Batch

FIRST, NUM_STEPS = 5, 5  # the first steps warm up caches and are left out


class Profiler:
    """Traces the steps 6 to 10 of a process, or the steps from the sixth if there are fewer than ten.

    Attributes:
      folder: the folder that `jax.profiler` writes the trace to.
    """

    def __init__(self, folder: Path, console: Console):
        self.folder = folder
        self._console = console
        self._num_done = 0
        self._is_tracing = False
        self._is_watching = False

    def watch(self, train_step: TrainStep) -> TrainStep:
        """Returns the step with tracing."""
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
        """Writes the trace, unless it is written already."""
        if self._is_tracing:
            self._is_tracing = self._is_watching = False
            jax.profiler.stop_trace()
            self._console.line(f"profile of {self._num_done - FIRST} steps: {self.folder}")
        elif self._is_watching and self._num_done <= FIRST:
            self._is_watching = False
            self._console.line(f"no profile: this start made no more than {FIRST} steps")
