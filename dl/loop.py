"""The one training loop: restore, step, evaluate, save, record, stop.

It only orchestrates: what a step computes stands in `step`, what a batch holds in `data.pipeline`.
"""

import contextlib
import dataclasses
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from dl.checkpoint import Checkpoints
from dl.console import Console, format_figures
from dl.data.pipeline import Batches
from dl.digest import tree_digest
from dl.errors import UserError
from dl.experiment import Experiment
from dl.log import Averages, MetricsLog
from dl.metrics import MetricTable
from dl.nans import report_nans
from dl.program import Program
from dl.progress import Progress
from dl.run import Run, describe_devices
from dl.sharding import format_mesh, num_batch_shards
from dl.signals import Stopped, StopSignals
from dl.summary import final_line, introduce

# Steps under way before their metrics are read: enough to keep a device busy, few enough that the bar
# tells the truth and that batches do not pile up in memory.
MAX_IN_FLIGHT = 4
FINAL_SPLIT = "test"
# A batch larger than the split is mostly padding, which is a mistake, except that a default batch size must
# do for a tiny set too.
MAX_PADDED_BATCH = 1024


def train(
    experiment: Experiment,
    run: Run,
    mesh: Mesh,
    *,
    log_every: int = 10,
    save_every: float = 30.0,
    debug_nans: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Trains from the newest checkpoint of the run's folder, or from the start, to the end.

    Args:
      experiment: what to compute.
      run: the folder; a finished run is not repeated.
      mesh: the devices. A run may go on with another mesh than it began with.
      log_every: steps between two lines of metrics.
      save_every: seconds between two checkpoints.
      debug_nans: end at the first NaN with the operation that made it; see `nans.report_nans`.
      console: where a person watches.

    Returns:
      The content of result.json.

    Raises:
      UserError: a mistake in the options or the data, a folder that holds another run, or a loss that is
        no number any more.
      Stopped: SIGINT or SIGTERM arrived; the state was saved.
    """
    console = console or Console()
    with contextlib.ExitStack() as stack:
        batches = _make_batches(experiment, mesh)
        run.check(_facts(experiment))
        if run.result is not None:
            console.line(f"finished before: {final_line(run.result, run)}")
            return run.result
        program = Program(experiment, mesh, batches)
        introduce(console, experiment, run, mesh, program.facts)
        run.open({**_facts(experiment), **program.facts}, mesh)
        stack.callback(run.close)
        stop = stack.enter_context(StopSignals())
        console.start(experiment.num_steps)
        stack.callback(console.stop)
        checkpoints = Checkpoints(run.checkpoints_path)
        stack.callback(checkpoints.close)
        session = _Session(experiment, run, program, batches, checkpoints, console, stop)
        stack.callback(session.close)
        session.restore()
        session.run_to_end(log_every, save_every, debug_nans)
        result = session.result(mesh)
        run.finish(result)
        console.line(final_line(result, run))
        return result


class _Session:
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
    ):
        self.experiment = experiment
        self.run = run
        self.program = program
        self.batches = batches
        self.checkpoints = checkpoints
        self.console = console
        self.stop = stop
        self.progress = Progress()
        self.step = 0  # whose metrics are recorded; the state is at this step or a few further
        self.steps_per_epoch = batches["train"].steps_per_epoch
        self.report_every = experiment.report_every or self.steps_per_epoch
        self.compile_seconds = 0.0

    def restore(self) -> None:
        restored = self.checkpoints.restore(self.program.abstract_state)
        if restored is None:
            self.state = self.program.init()
        else:
            self.state, progress = restored
            self.progress = Progress.from_json(progress)
            self.step = int(self.state.step)
            self.console.line(f"resuming at step {self.step:,} of {self.experiment.num_steps:,}")
        self.log = MetricsLog(self.run.metrics_path, self.progress.log_size, self.step)

    def close(self) -> None:
        if hasattr(self, "log"):
            self.log.close()

    def run_to_end(self, log_every: int, save_every: float, debug_nans: bool) -> None:
        experiment, num_steps = self.experiment, self.experiment.num_steps
        self.compile_seconds = self.program.compile()
        self.console.line(f"compiled in {self.compile_seconds:.1f} s")
        if self.step == 0 and experiment.report_start:
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
        for step, batch in self._numbered_batches(self.step, num_steps):
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
                self._save()
                last_save = time.monotonic()
            if self.stop.received:
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
            return iter(())
        return zip(range(start + 1, stop + 1), self.batches["train"].iterate(start, stop), strict=True)

    def _is_report_step(self, step: int) -> bool:
        return step % self.report_every == 0 or step == self.experiment.num_steps

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
            figures = {**_shown(progress.line.compute()), "examples_per_second": rate}
            self.console.progress(step, self._place(step), figures)
        if step % log_every == 0 or self._is_report_step(step):
            rate = self._examples_per_second()
            values = {**progress.line.compute(), "examples_per_second": rate}
            self._write("train", values)
            progress.line = Averages()

    def _refuse_divergence(self) -> None:
        """Ends a run whose loss is no number any more: nothing after that is worth its time."""
        total, count = self.progress.line.sums.get("loss", (0.0, 1.0))
        if math.isfinite(total) or self.experiment.loss_scale is not None:
            return
        loss, rate = total / count, self.progress.line.compute().get("learning_rate")
        at_rate = f" at learning rate {rate:.3g}" if rate else ""
        raise UserError(
            f"the loss became {loss} in step {self.step:,}{at_rate}; lower the learning "
            "rate, clip the gradient, look for labels and inputs out of range, or add --debug-nans; "
            "checkpoints before it stand"
        )

    def _report(self) -> None:
        """Evaluates every split but the final one, once a report step."""
        progress = self.progress
        if progress.reported_step == self.step:
            return
        evaluations = {}
        for name in self.batches:
            if name not in ("train", FINAL_SPLIT):
                evaluations[name] = self._evaluate(name)
        if self.stop.received and None in evaluations.values():
            return  # cut short: the resumed run evaluates again
        averages = progress.epoch.compute()
        seconds = progress.total.seconds
        if averages:
            self._write("epoch", {**averages, "seconds": seconds})
        parts = [self._place(self.step)]
        if averages:
            parts.append(f"train  {format_figures(_shown(averages))}")
        for name, values in evaluations.items():
            assert values is not None
            self._write(name, values)
            parts.append(f"{name}  {format_figures(values)}")
        if averages:
            rate = self._examples_per_second()
            parts.append(format_figures({"examples_per_second": rate}) + f"  at {seconds:.1f} s")
        self.console.line("  |  ".join(parts))
        progress.epoch = Averages()
        progress.reported_step = self.step
        progress.evaluations = evaluations  # type: ignore[assignment]

    def _evaluate(self, name: str) -> dict[str, float] | None:
        """Returns the means over a split; None if a signal cut it short."""
        averages = Averages()
        batches = self.batches[name]
        assert self.program.eval_step is not None
        outputs = (
            self.program.eval_step(self.state, batch) for batch in batches.iterate(0, batches.steps_per_epoch)
        )
        for metrics in _lagged(outputs, MAX_IN_FLIGHT):
            averages.add(jax.device_get(metrics))
            if self.stop.received:
                return None
        return averages.compute()

    def result(self, mesh: Mesh) -> dict[str, Any]:
        """Evaluates the final split and returns what result.json says."""
        progress = self.progress
        metrics: dict[str, dict[str, float]] = {}
        if FINAL_SPLIT in self.batches:
            values = self._evaluate(FINAL_SPLIT)
            if values is None:
                assert self.stop.received is not None
                raise Stopped(self.stop.received, self._stopped_message())
            self._write(FINAL_SPLIT, values)
            metrics[FINAL_SPLIT] = values
        metrics.update(progress.evaluations)
        return {
            "experiment": self.run.name,
            "metrics": metrics,
            "steps": self.step,
            "epochs": self.step / self.steps_per_epoch,
            "seconds": round(progress.total.seconds, 3),
            "train_seconds": round(progress.training.seconds, 3),
            "compile_seconds": round(self.compile_seconds, 3),
            "examples_per_second": round(self._examples_per_second(), 1),
            **self.program.facts,
            "params_digest": tree_digest(self.state.eval_params),
            "dataset": dataclasses.asdict(self.experiment.data.identity),
            "notice": self.experiment.data.notice,
            "devices": describe_devices(mesh),
            "mesh": format_mesh(mesh.shape),
            "seed": self.experiment.seed,
        }

    def _save(self) -> None:
        """Saves the state and the progress; both are at the same step here."""
        if self.step:
            self.checkpoints.save(self.step, self.state, self.progress.to_json())

    def _write(self, kind: str, values: Mapping[str, float]) -> None:
        self.log.write(kind, self.step, self.step / self.steps_per_epoch, values)
        self.progress.log_size = self.log.size

    def _examples_per_second(self) -> float:
        """Returns training examples over the time spent in training steps, since step 0."""
        epoch, within = divmod(self.step, self.steps_per_epoch)
        size = len(self.experiment.data.train)
        examples = epoch * size + min(within * self.experiment.batch_size, size)
        seconds = self.progress.training.seconds
        return examples / seconds if seconds > 0 else 0.0

    def _place(self, step: int) -> str:
        if self.report_every % self.steps_per_epoch:
            return f"step {step:,}/{self.experiment.num_steps:,}"
        epochs = self.experiment.num_steps / self.steps_per_epoch
        return f"epoch {-(-step // self.steps_per_epoch)}/{epochs:g}"

    def _stopped_message(self) -> str:
        name = self.stop.received.name if self.stop.received else "a signal"
        when = (
            f"stopped by {name}, saved at step {self.step:,} of {self.experiment.num_steps:,}"
            if self.step
            else f"stopped by {name} before the first step"
        )
        return f"{when}; to go on: {self.run.resume_command}"


def _lagged(outputs: Iterable[Any], lag: int) -> Iterator[Any]:
    """Yields the outputs in order, each after `lag` later ones were asked for."""
    pending: deque[Any] = deque()
    for output in outputs:
        pending.append(output)
        if len(pending) > lag:
            yield pending.popleft()
    yield from pending


def _make_batches(experiment: Experiment, mesh: Mesh) -> dict[str, Batches]:
    """Returns the batches of `train` and of each evaluation split, which share one shape."""
    data = experiment.data
    if experiment.batch_size > max(len(data.train), MAX_PADDED_BATCH):
        raise UserError(
            f"batch_size={experiment.batch_size} is larger than the training split of "
            f"{data.identity.name}, {len(data.train)} examples; choose at most that"
        )
    for name, source in {"train": data.train, **data.evaluations}.items():
        if not len(source):
            raise UserError(f"the {name} split of {data.identity.name} is empty; choose another data set")
    batches = {"train": Batches(data.train, experiment.batch_size, mesh, seed=experiment.seed)}
    largest = max((len(source) for source in data.evaluations.values()), default=0)
    shards = num_batch_shards(mesh)
    size = -(-min(experiment.eval_batch_size, largest) // shards) * shards
    for name, source in data.evaluations.items():
        batches[name] = Batches(source, size, mesh)
    return batches


def _facts(experiment: Experiment) -> dict[str, Any]:
    data = experiment.data
    return {"dataset": dataclasses.asdict(data.identity), "notice": data.notice}


def _shown(values: Mapping[str, float]) -> dict[str, float]:
    """Leaves out of a line for people what only a plot needs."""
    return {k: v for k, v in values.items() if k not in ("gradient_norm", "learning_rate")}
