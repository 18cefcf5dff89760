"""What a run tells while it goes on: lines of metrics in its log, and the same for a person who watches."""

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
    """Averages the metrics of steps in the run's progress, and writes them when asked to."""

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
          experiment: what is trained.
          num_runs: that are trained at the same time.
          steps_per_epoch: of the training split.
          progress: holds the averages, the clocks and how far the log is written.
          log: of the run.
          console: where a person watches.
        """
        self._experiment = experiment
        self._num_runs = num_runs
        self._steps_per_epoch = steps_per_epoch
        self._progress = progress
        self._log = log
        self._console = console

    @property
    def log_digest(self) -> str:
        """The SHA-256 of what was written to the log."""
        return self._log.digest

    def begin(self, step: int) -> None:
        """Says if the log does not hold the lines of the steps before."""
        if self._log.trouble:
            self._progress.log_start = step
            self._console.line(f"{self._log.trouble}; the metrics go on from step {step:,} in a new one")

    def add(self, metrics: MetricTable) -> None:
        """Takes in the metrics of a step, once they are on the host."""
        self._progress.line.add(metrics)
        self._progress.epoch.add(metrics)

    def tell(self, step: int, is_line: bool) -> None:
        """Moves the progress bar, and if `is_line` writes the averages since the last line."""
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
        """Writes and prints the metrics of an evaluation, by split, beside those of training.

        Returns:
          The averages of training since the last evaluation; empty if there was no step.
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
        """Returns training examples over the time spent in training steps, since step 0."""
        epoch, within = divmod(step, self._steps_per_epoch)
        size = len(self._experiment.data.train)
        examples = epoch * size + min(within * self._experiment.batch_size, size)
        seconds = self._progress.training.seconds
        return self._num_runs * examples / seconds if seconds > 0 else 0.0

    def place(self, step: int) -> str:
        """Returns how far a step is, in epochs where evaluations come at the end of one."""
        num_steps, size = self._experiment.num_steps, self._steps_per_epoch
        if (self._experiment.eval_every or size) % size:
            return f"step {step:,}/{num_steps:,}"
        # The last one may end before its end.
        done, epochs = (-(-n // size) for n in (step, num_steps))
        return f"epoch {done:,}/{epochs:,}"


def _shown(metrics: Mapping[str, float]) -> dict[str, float]:
    """Leaves out of a line for people what only a plot needs."""
    return {k: v for k, v in metrics.items() if k not in ("gradient_norm", "learning_rate")}
