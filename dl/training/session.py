"""The one loop over steps: step, record, evaluate, choose, save, stop; and what a run ends with.

It only orchestrates: what a step computes stands in `step`, what a batch holds in `data.pipeline`.
"""

import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dl import freezing
from dl.data.pipeline import Batches
from dl.errors import Diverged, UserError
from dl.experiment import Experiment
from dl.metrics import MetricTable
from dl.runs.console import Console, format_figures
from dl.runs.digest import tree_digest
from dl.runs.folder import Run
from dl.runs.log import Averages, MetricsLog, means
from dl.runs.predictions import Kept, add_to_result, collect_predictions
from dl.runs.provenance import peak_memory
from dl.stopping import FINAL_SPLIT, Best
from dl.task import kind_facts
from dl.training.checkpoint import Checkpoints
from dl.training.evaluate import MAX_IN_FLIGHT, Evaluation, evaluate
from dl.training.nans import report_nans
from dl.training.population import Members
from dl.training.profiler import Profiler
from dl.training.program import Program, nonfinite
from dl.training.progress import Progress
from dl.training.signals import Stopped, StopSignals
from dl.training.state import TrainState
from dl.training.summary import describe_data_and_devices, summarize
from dl.types import Variables


class Session:
    """One process's part of a run: from a restored or fresh state to the end or a signal."""

    def __init__(
        self,
        experiment: Experiment,
        run: Run,
        program: Program,
        batches: Mapping[str, Batches],
        checkpoints: Checkpoints,
        console: Console,
        stop: StopSignals,
        members: Members | None,
    ):
        self.experiment = experiment
        self.run = run
        self.program = program
        self.batches = batches
        self.checkpoints = checkpoints
        self.console = console
        self.stop = stop
        self.members = members
        self.progress = Progress(best=Best.none_yet(len(members) if members else 1))
        self.step = 0  # whose metrics are recorded; the state is at this step or a few further
        self.steps_per_epoch = batches["train"].steps_per_epoch
        self.eval_every = experiment.eval_every or self.steps_per_epoch

    def restore(self, start: Variables | None) -> None:
        restored = self.checkpoints.restore(self.program.abstract_state, self._trouble_with)
        if restored is None:
            self.state = self.program.init(start)
            self.progress.frozen_digest = self._frozen_digest(self.program.eval_variables(self.state))
        else:
            self.state, saved = restored
            try:
                self.progress = Progress.from_json(saved)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise UserError(
                    f"the progress record of the newest checkpoint in {self.checkpoints.directory} cannot be "
                    f"read ({type(error).__name__}: {error}); remove that, or start in another --workdir"
                ) from None
            self.step = int(self.state.step.max())  # the same for every member
            self.console.line(f"resuming at step {self.step:,} of {self.experiment.num_steps:,}")
        progress = self.progress
        self.log = MetricsLog(self.run.metrics_path, progress.log_size, self.step, progress.log_digest)
        if self.log.trouble:
            progress.log_start = self.step
            self.console.line(f"{self.log.trouble}; the metrics go on from step {self.step:,} in a new one")

    def close(self) -> None:
        if hasattr(self, "log"):
            self.log.close()

    def run_to_end(
        self, log_every: int, save_every: float, debug_nans: bool, profiler: Profiler | None = None
    ) -> None:
        experiment, num_steps = self.experiment, self.experiment.num_steps
        with self.progress.compiling.running():
            seconds = self.program.compile()
        self.console.line(f"compiled in {seconds:.1f} s")
        if self.step == 0 and experiment.eval_at_start:
            self._report()
        elif self.step and self._is_report_step(self.step):
            self._report()  # unless it was made before the checkpoint
        last_save = time.monotonic()
        pending: deque[tuple[int, Any]] = deque()
        progress = self.progress
        progress.training.start()
        train_step = self.program.train_step
        if debug_nans:
            train_step = report_nans(train_step, experiment)
        if profiler is not None:
            train_step = profiler.watch(train_step)
        end = self.step if progress.stopped_early else num_steps
        for step, batch in self._numbered_batches(self.step, end):
            self.state, metrics = train_step(self.state, batch)
            pending.append((step, metrics))
            is_report = self._is_report_step(step)
            is_save = time.monotonic() - last_save > save_every
            keep = 0 if is_report or is_save or self.stop.received else MAX_IN_FLIGHT
            while len(pending) > keep:
                self._record(*pending.popleft(), log_every)
            if is_report:
                with progress.training.paused():
                    self._report()
            if is_save and not self.stop.received:
                with progress.training.paused():
                    self._save()
                last_save = time.monotonic()
            if self.stop.received or progress.stopped_early:
                break
        while pending:  # a signal may come after the queue was looked at
            self._record(*pending.popleft(), log_every)
        progress.training.stop()
        if self.stop.received:
            self._save()
            raise Stopped(self.stop.received, self._stopped_message())
        self._save()

    def _numbered_batches(self, start: int, stop: int) -> Iterator[tuple[int, Any]]:
        if self.stop.received:
            return
        batches = self.batches["train"].iterate(start, stop)
        for step in range(start + 1, stop + 1):
            with self.progress.waiting.running():
                batch = next(batches)
            yield step, batch

    def _is_report_step(self, step: int) -> bool:
        return step % self.eval_every == 0 or step == self.experiment.num_steps

    def _record(self, step: int, metrics: MetricTable, log_every: int) -> None:
        """Takes in the metrics of one step."""
        self.step = step
        metrics = jax.device_get(metrics)
        progress = self.progress
        progress.line.add(metrics)
        progress.epoch.add(metrics)
        self._refuse_divergence()
        if self.console.is_live:
            rate = self._examples_per_second()
            figures = {**_shown(means(progress.line.compute())), "examples_per_second": rate}
            self.console.progress(step, self._place(step), figures)
        if step % log_every == 0 or self._is_report_step(step):
            rate = self._examples_per_second()
            values = {**progress.line.compute(), "examples_per_second": rate}
            self._write("train", values)
            progress.line = Averages()

    def _refuse_divergence(self) -> None:
        """Ends a run whose loss is no number any more: nothing after that is worth its time."""
        averages = self.progress.line.compute()
        # Of several seeds some may go on.
        if np.isfinite(averages.get("loss", 0.0)).any() or self.experiment.loss_scale is not None:
            return
        figures = means(averages)
        loss, rate = figures["loss"], figures.get("learning_rate")
        at_rate = f" at learning rate {rate:.3g}" if rate else ""
        raise self._diverged(f"the loss became {loss} in step {self.step:,}{at_rate}")

    def _trouble_with(self, state: TrainState) -> str:
        """Says which parameters or statistics of a state are no numbers; empty if, of any member, all are."""
        if np.asarray(self.program.is_finite(state)).any():
            return ""
        name = next(iter(nonfinite(state)), "a parameter")
        return f"{name} is not finite"

    def _diverged(self, what: str) -> Diverged:
        self.checkpoints.wait()
        steps = self.checkpoints.steps
        stands = f"the checkpoint of step {steps[-1]:,} stands" if steps else "nothing was saved before"
        return Diverged(
            f"{what}; lower the learning rate, clip the gradient, look for labels and inputs out of range, "
            f"or add --debug-nans; {stands}"
        )

    def _report(self) -> None:
        """Evaluates every split but the final one, once a report step."""
        progress = self.progress
        if progress.reported_step == self.step:
            return
        found: dict[str, Evaluation] = {}
        variables = self.program.eval_variables(self.state)
        for name in self.batches:
            if name not in ("train", FINAL_SPLIT):
                evaluation = self._evaluate(name, variables)
                if evaluation is None:
                    return  # cut short: the resumed run evaluates again
                found[name] = evaluation
        evaluations = {name: evaluation.means for name, evaluation in found.items()}
        averages = progress.epoch.compute()
        seconds = progress.total.seconds
        if averages:
            self._write("epoch", {**averages, "seconds": seconds})
        parts = [self._place(self.step)]
        if averages:
            parts.append(f"train  {format_figures(_shown(means(averages)))}")
        for name, values in evaluations.items():
            self._write(name, values)
            parts.append(f"{name}  {format_figures(means(values))}")
        if averages:
            rate = self._examples_per_second()
            parts.append(format_figures({"examples_per_second": rate}) + f"  at {seconds:.1f} s")
        self.console.line("  |  ".join(parts))
        progress.epoch = Averages()
        progress.reported_step = self.step
        intervals = {name: self._intervals(evaluation) for name, evaluation in found.items()}
        self._choose({"train": averages, **evaluations} if averages else evaluations, intervals)

    def _choose(
        self, figures: Mapping[str, Mapping[str, np.ndarray]], intervals: dict[str, dict[str, Any]]
    ) -> None:
        """Keeps the best variables, and decides whether the run has seen enough."""
        progress, rule, target = self.progress, self.experiment.keep_best, self.experiment.stop_at
        evaluations = {split: dict(values) for split, values in figures.items() if split != "train"}
        if rule is None or self.step == 0:
            progress.evaluations, progress.intervals = evaluations, intervals
        elif (is_taken := progress.best.update(rule, figures, self.step)).any():
            self.state = self.program.keep_best(self.state, is_taken)
            for split, values in evaluations.items():
                for name, value in values.items():
                    before = progress.evaluations.get(split, {}).get(name, value)
                    values[name] = np.where(is_taken if np.ndim(value) else is_taken[0], value, before)
            progress.evaluations, progress.intervals = evaluations, intervals
        if rule is not None and self.step and progress.best.is_over(rule):
            progress.stopped_early = (
                f"{rule.split} {rule.metric} has not improved for {rule.patience} evaluations"
            )
        elif target is not None and target.split in figures and target.is_met(figures):
            progress.stopped_early = f"{target.split} {target.metric} has reached {target.value:g}"
        if progress.stopped_early and self.step < self.experiment.num_steps:
            self.console.line(f"stopped early at {self._place(self.step)}: {progress.stopped_early}")

    def _evaluate(self, name: str, variables: Variables) -> Evaluation | None:
        """Returns what a split measures; None if a signal cut it short."""
        assert self.program.eval_step is not None
        is_final = name == FINAL_SPLIT
        with self.progress.evaluating.running():
            return evaluate(self.program.eval_step, variables, self.batches[name], self.stop, is_final)

    def _intervals(self, evaluation: Evaluation) -> dict[str, Any]:
        """Returns bounds and method of each metric of one run, and notes which metrics are shares.

        An interval is only for show: where it cannot be computed, the figures stand without it.
        """
        found: dict[str, Any] = {}
        for name, spread in evaluation.spreads.items():
            is_share = bool(np.all(spread.is_share))
            self.progress.shares[name] = self.progress.shares.get(name, True) and is_share
            if self.members is not None:
                continue
            try:
                interval = spread.interval()
            except Exception as error:
                self.console.line(f"no interval of {name} ({_brief(error)})")
                continue
            if interval is not None:
                (_, low, high), method = interval
                found[name] = [low, high, method]
        return found

    def result(self, mesh: Mesh) -> dict[str, Any]:
        """Evaluates the final split and returns what result.json says."""
        progress = self.progress
        variables = self.state.best or self.program.eval_variables(self.state)
        metrics: dict[str, Mapping[str, Any]] = {}
        intervals: dict[str, Mapping[str, Any]] = {}
        examples: Mapping[str, np.ndarray] = {}
        if FINAL_SPLIT in self.batches:
            evaluation = self._evaluate(FINAL_SPLIT, variables)
            if evaluation is None:
                assert self.stop.received is not None
                raise Stopped(self.stop.received, self._stopped_message())
            self._write(FINAL_SPLIT, evaluation.means)
            metrics[FINAL_SPLIT] = evaluation.means
            intervals[FINAL_SPLIT] = self._intervals(evaluation)
            examples = evaluation.examples
        metrics.update(progress.evaluations)
        intervals.update(progress.intervals)
        predictions = self._keep_predictions(variables, mesh, examples)
        if self.stop.received:
            raise Stopped(self.stop.received, self._stopped_message())
        measured: dict[str, Any] = {
            "seconds": round(progress.total.seconds, 3),
            "train_seconds": round(progress.training.seconds, 3),
            "input_seconds": round(progress.waiting.seconds, 3),
            "compile_seconds": round(progress.compiling.seconds, 3),
            "evaluation_seconds": round(progress.evaluating.seconds, 3),
            "saving_seconds": round(progress.saving.seconds, 3),
            "peak_memory_bytes": peak_memory(mesh),
            "examples_per_second": round(self._examples_per_second(), 1),
            **self.program.facts,
        }
        if (frozen := self._frozen_digest(variables)) != progress.frozen_digest:
            raise RuntimeError(f"frozen variables have changed: {progress.frozen_digest} became {frozen}")
        if frozen:
            count = self.program.facts["num_frozen_parameters"]
            self.console.line(f"the {count:,} frozen parameters are as they were, sha256 {frozen[:12]}")
            measured["frozen_digest"] = frozen
        result = {
            "experiment": self.run.name,
            **kind_facts(self.experiment.task.kind),
            **summarize(self.experiment, progress, metrics, intervals, variables, self.members),
            **({"metrics_from_step": progress.log_start} if progress.log_start else {}),
            "better": dict(self.program.metrics),
            **self._warnings(),
            "steps": self.step,
            "epochs": self.step / self.steps_per_epoch,
            **measured,
            **describe_data_and_devices(self.experiment, mesh),
        }
        if predictions is not None:
            add_to_result(self.experiment, result, predictions, self.console.line)
        return result

    def _warnings(self) -> dict[str, Any]:
        """Returns what a reader must know before trusting the figures."""
        rule, values = self.experiment.keep_best, self.progress.best.value
        if rule is None or None not in values:
            return {}
        which = "" if len(values) == 1 else f" of {values.count(None)} of {len(values)} seeds"
        warning = (
            f"{rule.split} {rule.metric}{which} was a finite number in no evaluation, so that none is the "
            "best; the run ends with its last variables"
        )
        self.console.line(f"WARNING: {warning}")
        return {"warnings": [warning]}

    def _frozen_digest(self, variables: Variables) -> str:
        """Returns the SHA-256 of what is frozen, parameters and statistics; empty where nothing is."""
        patterns = self.experiment.frozen
        return tree_digest(freezing.frozen_part(variables, patterns)) if patterns else ""

    def _keep_predictions(
        self, variables: Variables, mesh: Mesh, examples: Mapping[str, np.ndarray]
    ) -> Kept | None:
        """Writes what the run's end predicts for the final split; what it measured stands without that.

        Args:
          variables: that the run ends with.
          mesh: the devices.
          examples: by metric, what each example of the final split adds to it.
        """
        split = FINAL_SPLIT if FINAL_SPLIT in self.batches else list(self.batches)[-1]
        if self.members is not None or split == "train":
            return None
        try:
            with self.progress.evaluating.running():
                predictions = collect_predictions(
                    self.experiment,
                    variables,
                    self.batches[split],
                    mesh,
                    split,
                    lambda: bool(self.stop.received),
                )
            if predictions is not None and split == FINAL_SPLIT:
                predictions = predictions.with_metrics(examples)
            if predictions is not None and jax.process_index() == 0:
                predictions.save(self.run.predictions_path)
            return predictions
        except Exception as error:
            self.console.line(
                f"no predictions of {split} were written ({_brief(error)}); look at predict of its Task"
            )
            return None

    def _save(self) -> None:
        """Saves the state and the progress; both are at the same step here.

        Raises:
          Diverged: it is no state to go on from.
          StorageError: it cannot be written.
        """
        if not self.step:
            return
        with self.run.in_place(), self.progress.saving.running():
            if trouble := self._trouble_with(self.state):
                raise self._diverged(f"{trouble} after step {self.step:,}")
            self.progress.log_digest = self.log.digest
            self.checkpoints.save(self.step, self.state, self.progress.to_json())

    def _write(self, kind: str, values: Mapping[str, Any]) -> None:
        self.log.write(kind, self.step, self.step / self.steps_per_epoch, values)
        self.progress.log_size = self.log.size

    def _examples_per_second(self) -> float:
        """Returns training examples over the time spent in training steps, since step 0."""
        epoch, within = divmod(self.step, self.steps_per_epoch)
        size = len(self.experiment.data.train)
        examples = epoch * size + min(within * self.experiment.batch_size, size)
        seconds = self.progress.training.seconds
        return len(self.members or [None]) * examples / seconds if seconds > 0 else 0.0

    def _place(self, step: int) -> str:
        if self.eval_every % self.steps_per_epoch:
            return f"step {step:,}/{self.experiment.num_steps:,}"
        # The last one may end before its end.
        done, epochs = (-(-n // self.steps_per_epoch) for n in (step, self.experiment.num_steps))
        return f"epoch {done:,}/{epochs:,}"

    def _stopped_message(self) -> str:
        name = self.stop.received.name if self.stop.received else "a signal"
        when = (
            f"stopped by {name}, saved at step {self.step:,} of {self.experiment.num_steps:,}"
            if self.step
            else f"stopped by {name} before the first step"
        )
        return f"{when}; to go on: {self.run.resume_command}"


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def _shown(values: Mapping[str, float]) -> dict[str, float]:
    """Leaves out of a line for people what only a plot needs."""
    return {k: v for k, v in values.items() if k not in ("gradient_norm", "learning_rate")}
