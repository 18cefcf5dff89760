"""The result of a run: the content of result.json, and the predictions."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dl import freezing
from dl.data.pipeline import Batches
from dl.errors import UserError
from dl.experiment import Experiment
from dl.runs.digest import tree_digest
from dl.runs.log import means
from dl.runs.predictions import Kept, collect_predictions
from dl.runs.provenance import describe_devices, peak_memory
from dl.sharding import format_mesh
from dl.stopping import FINAL_SPLIT, Best, KeepBest, MetricsOfSplits
from dl.system import allocator
from dl.task import kind_facts
from dl.training.evaluate import Evaluation
from dl.training.population import Population
from dl.training.program import Program
from dl.training.progress import Progress
from dl.training.single import IntervalsOfSplits, Single
from dl.types import Variables


def make_result(
    experiment: Experiment,
    program: Program,
    progress: Progress,
    variables: Variables,
    metrics: MetricsOfSplits,
    intervals: IntervalsOfSplits,
    *,
    name: str,
    steps: int,
    epochs: float,
    examples_per_second: float,
) -> dict[str, Any]:
    """Returns the content of result.json, without the metrics that are computed from the predictions.

    Args:
      experiment: the experiment that was trained.
      program: the program that trained it.
      progress: the progress at the end of the run.
      variables: the variables that the run ended with.
      metrics: the metrics by split and name: a scalar, or one value for each run of a population.
      intervals: of the metrics of a single run.
      name: the name of the run.
      steps: number of updates.
      epochs: number of passes over the training split.
      examples_per_second: training examples per second of training time.

    Raises:
      RuntimeError: frozen variables have changed.
    """
    frozen = frozen_digest(variables, experiment.frozen)
    if frozen != progress.frozen_digest:
        raise RuntimeError(
            f"frozen variables have changed: their digest was {progress.frozen_digest}, and is {frozen}"
        )
    warnings = find_warnings(experiment.keep_best, progress.best)
    return {
        "experiment": name,
        **kind_facts(experiment.task.kind),
        **summarize(experiment, progress, metrics, intervals, variables, program.population),
        **({"metrics_from_step": progress.log_start} if progress.log_start else {}),
        "better": dict(program.metrics),
        **({"warnings": warnings} if warnings else {}),
        "steps": steps,
        "epochs": epochs,
        "seconds": round(progress.total.seconds, 3),
        "train_seconds": round(progress.training.seconds, 3),
        "input_seconds": round(progress.waiting.seconds, 3),
        "compile_seconds": round(progress.compiling.seconds, 3),
        "evaluation_seconds": round(progress.evaluating.seconds, 3),
        "saving_seconds": round(progress.saving.seconds, 3),
        "peak_memory_bytes": peak_memory(program.mesh),
        "allocator": allocator.state(),
        "examples_per_second": round(examples_per_second, 1),
        **program.facts,
        **({"frozen_digest": frozen} if frozen else {}),
        "dataset": dataclasses.asdict(experiment.data.identity),
        "notice": experiment.data.notice,
        "devices": describe_devices(program.mesh),
        "mesh": format_mesh(program.mesh.shape),
    }


def summarize(
    experiment: Experiment,
    progress: Progress,
    metrics: MetricsOfSplits,
    intervals: IntervalsOfSplits,
    variables: Variables,
    population: Population | Single,
) -> dict[str, Any]:
    """Returns the final metrics of a run, its best evaluation, and digests.

    `intervals` are 95 % confidence intervals. `interval_methods` name their methods: over the seeds if there
    are several (Student's t), else over the examples (`evaluation.spread`).

    Args:
      experiment: what was trained.
      progress: the progress at the end of the run.
      metrics: the metrics by split and name: a scalar, or one value for each run of a population.
      intervals: of the metrics of a single run.
      variables: the variables that the run ended with.
      population: the runs that were trained.
    """
    rule, best = experiment.keep_best, progress.best
    chosen: list[dict[str, Any]] = []
    result: dict[str, Any] = {
        "metrics": {split: means(of_split) for split, of_split in metrics.items()},
        "seed": experiment.seed,
    }
    if progress.stopped_early:
        result["stopped_early"] = progress.stopped_early
    if rule is not None:
        result["best"] = {"split": rule.split, "metric": rule.metric}
        chosen = [{"step": step, "value": value} for step, value in zip(best.step, best.value, strict=True)]
    ends = population.summarize(metrics, intervals, progress.shares, chosen, variables)
    if rule is not None:
        result["best"] |= ends.pop("best", {})
    return {**result, **ends}


def find_warnings(rule: KeepBest | None, best: Best) -> list[str]:
    """Returns warnings that a reader of the metrics must know."""
    if rule is None or None not in best.value:
        return []
    num = len(best.value)
    which = "" if num == 1 else f" of {best.value.count(None)} of {num} seeds"
    return [
        f"{rule.split} {rule.metric}{which} was a finite number in no evaluation, so that none is the "
        "best; the run ends with its last variables"
    ]


def find_intervals(
    evaluation: Evaluation, population: Population | Single, warn: Callable[[str], None]
) -> dict[str, Any]:
    """Returns bounds and method of the interval of each metric of a single run; nothing for a population.

    If an interval cannot be computed, it is left out, and `warn` is called with the reason.
    """
    found: dict[str, Any] = {}
    for name, spread in evaluation.spreads.items():
        try:
            interval = population.interval(spread)
        except Exception as error:
            warn(f"no interval of {name} ({_brief(error)})")
            continue
        if interval is not None:
            (_, low, high), method = interval
            found[name] = [low, high, method]
    return found


def find_shares(evaluation: Evaluation, before: Mapping[str, bool]) -> dict[str, bool]:
    """Returns for each metric whether it is a proportion in [0, 1], here and in earlier evaluations."""
    here = {name: bool(np.all(spread.is_share)) for name, spread in evaluation.spreads.items()}
    return {**before, **{name: before.get(name, True) and is_share for name, is_share in here.items()}}


def frozen_digest(variables: Variables, frozen: freezing.Patterns) -> str:
    """Returns the SHA-256 of the frozen parameters and statistics; empty if nothing is frozen."""
    return tree_digest(freezing.frozen_part(variables, frozen)) if frozen else ""


def keep_predictions(
    experiment: Experiment,
    variables: Variables,
    batches: Mapping[str, Batches],
    mesh: Mesh,
    examples: Mapping[str, np.ndarray],
    keep: Callable[[Kept], None],
    is_stopped: Callable[[], bool],
    warn: Callable[[str], None],
) -> Kept | None:
    """Writes the final predictions for the final split. The metrics do not need them.

    Args:
      experiment: what was trained.
      variables: the variables that the run ends with.
      batches: the batches by split. Without a final split, the last evaluation split is used.
      mesh: the devices.
      examples: for each metric, what each example of the final split adds to it.
      keep: called with the predictions.
      is_stopped: called after each batch. If it returns True, the predictions are not kept.
      warn: called with the reason if there are no predictions.
    """
    split = FINAL_SPLIT if FINAL_SPLIT in batches else list(batches)[-1]
    if split == "train":
        return None
    try:
        predictions = collect_predictions(experiment, variables, batches[split], mesh, split, is_stopped)
        if predictions is not None and split == FINAL_SPLIT:
            predictions = predictions.with_metrics(examples)
        if predictions is not None and jax.process_index() == 0:
            keep(predictions)
        return predictions
    except Exception as error:
        is_named = isinstance(error, UserError)
        why = f": {error}" if is_named else f" ({_brief(error)}); look at predict of its Task"
        warn(f"no predictions of {split} were written{why}")
        return None


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
