"""The training loop: step, record, evaluate, save, stop. It only orchestrates, and opens no files itself."""

import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from dl.data.pipeline import Batches
from dl.errors import Diverged
from dl.experiment import Experiment
from dl.metrics import MetricTable
from dl.runs.console import Console
from dl.runs.log import MetricsLog, means
from dl.runs.memory import MemoryLog, MemoryRun, NoCheckpoints
from dl.runs.predictions import add_to_result
from dl.runs.run import Run
from dl.stopping import FINAL_SPLIT
from dl.training.advance import Call, FusedSteps, SingleSteps
from dl.training.baseline import measure_baseline
from dl.training.checkpoint import Checkpoints
from dl.training.choice import choose
from dl.training.evaluate import Evaluation, evaluate
from dl.training.processes import Alone, Together
from dl.training.program import CompiledSteps, Program
from dl.training.recorder import Recorder
from dl.training.result_json import find_intervals, find_shares, keep_predictions, make_result
from dl.training.samples import Samples
from dl.training.signals import Stopped
from dl.training.start import Start
from dl.types import Variables


class Session:
    """The part of a run in one process: from its start to the end or to a signal.

    Attributes:
      state: the training state, which may be a few steps ahead of `step`.
      progress: the progress of the run, on the host.
      step: the last step whose metrics are recorded.
    """

    def __init__(
        self,
        experiment: Experiment,
        run: Run | MemoryRun,
        program: Program,
        steps: CompiledSteps,
        batches: Mapping[str, Batches],
        start: Start,
        log: MetricsLog | MemoryLog,
        checkpoints: Checkpoints | NoCheckpoints,
        console: Console,
        together: Together | Alone,
        samples: Samples,
    ):
        self.state, self.progress, self.step = start
        self._experiment = experiment
        self._run = run
        self._program = program
        self._steps = steps
        self._batches = batches
        self._checkpoints = checkpoints
        self._console = console
        self._together = together
        self._samples = samples
        self._steps_per_epoch = batches["train"].steps_per_epoch
        self._eval_every = experiment.eval_every or self._steps_per_epoch
        self._recorder = Recorder(
            experiment, len(program.population), self._steps_per_epoch, self.progress, log, console
        )

    def run_to_end(self, log_every: int, save_every: float) -> None:
        """Runs the remaining steps, and saves the last state.

        Args:
          log_every: number of steps between two lines of metrics.
          save_every: time between two checkpoints, in seconds.

        Raises:
          Stopped: a signal arrived; the state was saved.
          Diverged: the loss or a parameter is not finite.
          StorageError: the state cannot be saved.
        """
        progress, together = self.progress, self._together
        self._recorder.begin(self.step)
        # After a resume this evaluation may be done already.
        if self._is_evaluated(self.step) if self.step else self._experiment.eval_at_start:
            self._evaluate_all()
        last_save = time.monotonic()
        pending: deque[Call] = deque()
        progress.training.start()
        step, end = self.step, self._experiment.num_steps
        if progress.stopped_early or together.is_stopped():
            end = step
        calls = self._calls(step, end)
        while step < end:
            to_evaluation = self._eval_every - step % self._eval_every
            self.state, call = calls.advance(self.state, step, min(end, step + to_evaluation))
            pending.append(call)
            step = call.steps[-1]
            is_evaluated = self._is_evaluated(step)
            is_saved = together.decide(time.monotonic() - last_save > save_every)
            keep = 0 if is_evaluated or is_saved or together.received else calls.max_in_flight
            while len(pending) > keep:
                self._record(pending.popleft(), log_every)
                calls.ended()
            if is_evaluated:
                with progress.training.paused():
                    self._evaluate_all()
            if is_saved and not together.received:
                with progress.training.paused():
                    self._save()
                last_save = time.monotonic()
            if together.received or progress.stopped_early:
                break
        while pending:  # a signal may arrive after the queue was checked
            self._record(pending.popleft(), log_every)
        progress.training.stop()
        self._save()
        self._end_if_stopped()

    def result(self, with_baseline: bool = True) -> dict[str, Any]:
        """Evaluates the final split, computes the baseline, and returns the content of result.json.

        Raises:
          Stopped: a signal arrived.
        """
        progress, program, experiment = self.progress, self._program, self._experiment
        variables = self.state.best or program.eval_variables(self.state)
        metrics: dict[str, Mapping[str, Any]] = {}
        intervals: dict[str, Mapping[str, Any]] = {}
        examples: Mapping[str, np.ndarray] = {}
        if FINAL_SPLIT in self._batches:
            evaluation = self._evaluate(FINAL_SPLIT, variables)
            self._end_if_stopped()
            assert evaluation is not None
            self._recorder.write(FINAL_SPLIT, self.step, evaluation.means)
            metrics[FINAL_SPLIT] = evaluation.means
            intervals[FINAL_SPLIT] = self._intervals(evaluation)
            examples = evaluation.examples
        predictions = None
        if program.population.keeps_predictions:
            with progress.evaluating.running():
                predictions = keep_predictions(
                    experiment,
                    variables,
                    self._batches,
                    program.mesh,
                    examples,
                    self._run.keep_predictions,
                    self._together.is_stopped,
                    self._console.line,
                )
        self._end_if_stopped()
        result = make_result(
            experiment,
            program,
            progress,
            variables,
            {**metrics, **progress.evaluations},
            {**intervals, **progress.intervals},
            name=self._run.name,
            steps=self.step,
            epochs=self.step / self._steps_per_epoch,
            examples_per_second=self._recorder.examples_per_second(self.step),
        )
        if frozen := result.get("frozen_digest"):
            count = program.facts["num_frozen_parameters"]
            self._console.line(f"the {count:,} frozen parameters are as they were, sha256 {frozen[:12]}")
        for warning in result.get("warnings", ()):
            self._console.line(f"WARNING: {warning}")
        if predictions is not None:
            add_to_result(experiment, result, predictions, self._console.line)
        if with_baseline and jax.process_index() == 0:
            measure_baseline(experiment, result, examples, self._console.line)
        return result

    def _calls(self, start: int, end: int) -> SingleSteps | FusedSteps:
        batches, waiting = self._batches["train"], self.progress.waiting
        if self._steps.fused is not None:
            return FusedSteps(self._steps.fused, batches, waiting)
        assert self._steps.train is not None
        return SingleSteps(self._steps.train, batches.iterate(start, end), waiting)

    def _is_evaluated(self, step: int) -> bool:
        return step % self._eval_every == 0 or step == self._experiment.num_steps

    def _record(self, call: Call, log_every: int) -> None:
        for step, metrics in call.fetch():
            self.step = step
            self._recorder.add(metrics)
            self._refuse_divergence(metrics)
            self._recorder.tell(step, is_line=step % log_every == 0 or self._is_evaluated(step))

    def _refuse_divergence(self, metrics: MetricTable) -> None:
        """Ends a run whose loss is not finite, because training cannot recover from that."""
        # With several seeds, the run ends when all have diverged.
        is_finite = "loss" not in metrics or np.isfinite(metrics["loss"].total).any()
        if is_finite or self._experiment.loss_scale is not None:
            return
        shown = means(self.progress.line.compute())
        loss, rate = shown["loss"], shown.get("learning_rate")
        at_rate = f" at learning rate {rate:.3g}" if rate else ""
        raise self._diverged(f"the loss became {loss} in step {self.step:,}{at_rate}")

    def _diverged(self, what: str) -> Diverged:
        self._checkpoints.wait()
        steps = self._checkpoints.steps
        saved = f"the checkpoint of step {steps[-1]:,} is kept" if steps else "no checkpoint was saved before"
        return Diverged(
            f"{what}; lower the learning rate, clip the gradient, look for inputs and targets out of range, "
            f"or add --debug-nans; {saved}"
        )

    def _evaluate_all(self) -> None:
        """Evaluates every split but the final one, unless that was done at this step, and decides by it."""
        progress = self.progress
        if progress.evaluated_step == self.step:
            return
        found: dict[str, Evaluation] = {}
        variables = self._program.eval_variables(self.state)
        for name in self._batches:
            if name not in ("train", FINAL_SPLIT):
                evaluation = self._evaluate(name, variables)
                if evaluation is None:
                    return  # interrupted by a signal: the resumed run evaluates again
                found[name] = evaluation
        trained = self._recorder.tell_evaluations(
            self.step, {name: evaluation.means for name, evaluation in found.items()}
        )
        with progress.evaluating.running():
            self._samples.write(self.step, variables)
        progress.evaluated_step = self.step
        self._decide({"train": trained} if trained else {}, found)

    def _decide(self, trained: Mapping[str, Any], found: Mapping[str, Evaluation]) -> None:
        """Keeps the best variables, and ends the run if its rule for early stopping says so."""
        progress, experiment = self.progress, self._experiment
        choice = choose(
            experiment.keep_best,
            experiment.stop_at,
            progress,
            {**trained, **{name: evaluation.means for name, evaluation in found.items()}},
            {name: self._intervals(evaluation) for name, evaluation in found.items()},
            self.step,
        )
        if choice.is_taken.any():
            self.state = self._program.keep_best(self.state, choice.is_taken)
        progress.best, progress.stopped_early = choice.best, choice.stopped_early
        progress.evaluations, progress.intervals = choice.evaluations, choice.intervals
        if progress.stopped_early and self.step < experiment.num_steps:
            self._console.line(
                f"stopped early at {self._recorder.place(self.step)}: {progress.stopped_early}"
            )

    def _evaluate(self, name: str, variables: Variables) -> Evaluation | None:
        """Returns the evaluation of a split; `None` if a signal interrupted it."""
        assert self._steps.eval is not None
        with self.progress.evaluating.running():
            return evaluate(
                self._steps.eval, variables, self._batches[name], self._together, name == FINAL_SPLIT
            )

    def _intervals(self, evaluation: Evaluation) -> dict[str, Any]:
        self.progress.shares = find_shares(evaluation, self.progress.shares)
        return find_intervals(evaluation, self._program.population, self._console.line)

    def _save(self) -> None:
        """Saves the state and the progress, which are at the same step here.

        Raises:
          Diverged: the state is not finite.
          StorageError: the checkpoint cannot be written.
        """
        if not self.step:
            return
        with self._run.in_place(), self.progress.saving.running(), self._together.unwatched():
            if trouble := self._program.trouble_with(self.state):
                raise self._diverged(f"{trouble} after step {self.step:,}")
            self.progress.log_digest = self._recorder.log_digest
            self._checkpoints.save(self.step, self.state.saved, self.progress.to_json())

    def _end_if_stopped(self) -> None:
        """Raises Stopped if a signal arrived, with the command that resumes the run."""
        received = self._together.received
        if received is None:
            return
        name, num_steps = received.name, self._experiment.num_steps
        saved = "saved " if isinstance(self._run, Run) else ""
        when = f", {saved}at step {self.step:,} of {num_steps:,}" if self.step else " before the first step"
        raise Stopped(received, f"stopped by {name}{when}; to resume: {self._run.resume_command}")
