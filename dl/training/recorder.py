"""Records a run during training: lines of metrics in its log, and the progress bar."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dl.experiment import Experiment
from dl.metrics import MetricTable
from dl.runs.console import Console, format_figures
from dl.runs.log import Averages, MetricsLog, means
from dl.runs.memory import MemoryLog
from dl.training.progress import Progress


class Recorder:
    """Averages the metrics of the steps, and writes them on request."""

    def __init__(
        self,
        experiment: Experiment,
        num_runs: int,
        steps_per_epoch: int,
        progress: Progress,
        log: MetricsLog | MemoryLog,
        console: Console,
    ):
        """Makes a recorder.

        Args:
          experiment: the experiment that is trained.
          num_runs: number of runs that are trained at the same time.
          steps_per_epoch: number of steps in one pass over the training split.
          progress: the averages, the clocks and the size of the log.
          log: the log of the run.
          console: where the progress is shown.
        """
        self._experiment = experiment
        self._num_runs = num_runs
        self._steps_per_epoch = steps_per_epoch
        self._progress = progress
        self._log = log
        self._console = console

    @property
    def log_digest(self) -> str:
        """The SHA-256 of the log so far."""
        return self._log.digest

    def begin(self, step: int) -> None:
        """Warns if the log lacks the lines of earlier steps."""
        if self._log.trouble:
            self._progress.log_start = step
            self._console.line(f"{self._log.trouble}; the metrics continue from step {step:,} in a new file")

    def add(self, metrics: MetricTable) -> None:
        """Adds the metrics of a step, which are on the host."""
        self._progress.line.add(metrics)
        self._progress.epoch.add(metrics)

    def tell(self, step: int, is_line: bool) -> None:
        """Updates the progress bar. If `is_line`, also writes the averages since the last line."""
        if not (self._console.is_live or is_line):
            return
        metrics, rate = self._progress.line.compute(), self.examples_per_second(step)
        if self._console.is_live:
            shown = {**_shown(means(metrics)), "examples_per_second": rate}
            self._console.progress(step, self.place(step), shown)
        if is_line:
            self.write("train", step, {**metrics, "examples_per_second": rate})
            self._progress.line = Averages()

    def tell_evaluations(
        self, step: int, evaluations: Mapping[str, Mapping[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """Writes and prints the metrics of an evaluation, and the training metrics since the last one.

        Returns:
          The averages of the training metrics since the last evaluation; empty if there was no step.
        """
        trained, seconds = self._progress.epoch.compute(), self._progress.total.seconds
        self._progress.epoch = Averages()
        parts = [self.place(step)]
        if trained:
            self.write("epoch", step, {**trained, "seconds": seconds})
            parts.append(f"train  {format_figures(_shown(means(trained)))}")
        for split, metrics in evaluations.items():
            self.write(split, step, metrics)
            parts.append(f"{split}  {format_figures(means(metrics))}")
        if trained:
            rate = {"examples_per_second": self.examples_per_second(step)}
            parts.append(f"{format_figures(rate)}  at {seconds:.1f} s")
        self._console.line("  |  ".join(parts))
        return trained

    def write(self, kind: str, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes a line of the log."""
        self._log.write(kind, step, step / self._steps_per_epoch, metrics)
        self._progress.log_size = self._log.size

    def examples_per_second(self, step: int) -> float:
        """Returns the training examples per second of training time, since step 0."""
        epoch, within = divmod(step, self._steps_per_epoch)
        size = len(self._experiment.data.train)
        examples = epoch * size + min(within * self._experiment.batch_size, size)
        seconds = self._progress.training.seconds
        return self._num_runs * examples / seconds if seconds > 0 else 0.0

    def place(self, step: int) -> str:
        """Returns text about a step: its epoch if evaluations follow epochs, else its number."""
        num_steps, size = self._experiment.num_steps, self._steps_per_epoch
        if (self._experiment.eval_every or size) % size:
            return f"step {step:,}/{num_steps:,}"
        # The last one may end before its end.
        done, epochs = (-(-n // size) for n in (step, num_steps))
        return f"epoch {done:,}/{epochs:,}"


def _shown(metrics: Mapping[str, float]) -> dict[str, float]:
    """Returns the metrics for the progress line, without those that only a plot needs."""
    return {k: v for k, v in metrics.items() if k not in ("gradient_norm", "learning_rate")}
