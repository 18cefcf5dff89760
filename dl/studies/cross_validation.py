"""Cross-validation: an experiment is trained once for each fold, and evaluated on the held-out fold.

The folds are trained one after the other, because the runs of one program share their data, and folds do not.
The test split is read only on request.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from dl.data.folds import Folds
from dl.data.steps import steps_per_epoch
from dl.errors import UserError
from dl.evaluation.intervals import t_interval
from dl.evaluation.paired import overlapping_folds, verdict
from dl.evaluation.spread import EFFECTIVE, WILSON
from dl.experiment import Experiment
from dl.runs.baseline import baseline_lines
from dl.runs.console import Console
from dl.runs.log import finite
from dl.runs.run import Run
from dl.studies.folder import StudyKind, open_study, plain
from dl.system.bucket import refuse_url
from dl.training.loop import train_run
from dl.warm_start import FromExperiment

FOLDS = StudyKind("cross-validation", "folds.json", ("fold-*", "report.html"))


def cross_validate(
    run: Run, mesh: Mesh, *, num_folds: int, with_test: bool = False, **how: Any
) -> dict[str, Any]:
    """Trains on all folds but one, for each fold, in folders fold-1, fold-2, … in the folder of the run.

    Number of steps, batch size and schedule are those of the experiment, because the schedule is a part of
    the optimizer. The training set of a fold differs in size from the training split of the experiment, so
    the number of epochs differs; the output and folds.json state it. If each example has a class, the folds
    are stratified by class, else they are random. The interval is Student's over the folds (Kohavi 1995). It
    is too narrow because the training sets overlap, and no unbiased interval is known (Bengio & Grandvalet
    2004). Statistics that the experiment computed from its training split, such as channel means, may include
    the held-out fold. No run keeps the parameters of its best evaluation, because the held-out fold would
    choose them. The baseline of the experiment is fitted and scored on the same folds.

    Args:
      run: the run of the experiment with its original splits. Its folder contains those of the folds.
      mesh: the devices.
      num_folds: K, the number of folds.
      with_test: whether the test split is divided into folds too.
      how: further arguments of `train`.

    Returns:
      The content of folds.json.

    Raises:
      UserError: the errors of `train`; or the folder holds something else; or the warm start was trained on
        the same data.
    """
    refuse_url(run.where, f"a {FOLDS.name}")
    experiment = run.definition.build()
    _refuse_leaks(experiment)
    folds = Folds(experiment.data, num_folds, with_test)
    console = how.setdefault("console", None) or Console()
    facts = {"num_folds": num_folds, **({"with_test": True} if with_test else {})}
    header = {"experiment": run.name, "options": plain(run.definition.recorded), **facts}
    with open_study(FOLDS, run.folder, run.name) as study:
        study.begin(header)
        console.line(introduction(experiment, folds))
        results = _train_all(run, mesh, folds, console, how)
        summary = {
            **header,
            "is_stratified": folds.unstratified is None,
            **summarize(experiment, run, results),
        }
        study.write(finite(summary))
    for line in baseline_lines(summary):
        console.line(line)
    console.line(final_line(summary, run))
    return summary


def introduction(experiment: Experiment, folds: Folds) -> str:
    """Returns text about the folds: how they were drawn, and the number of epochs of a run."""
    size = min(len(folds[k].train) for k in range(len(folds)))
    steps, batch_size = experiment.num_steps, experiment.batch_size
    passes = [steps / steps_per_epoch(n, batch_size) for n in (size, len(experiment.data.train))]
    return (
        f"{len(folds)} folds, {folds.how}; each run has {steps:,} steps, {passes[0]:.4g} epochs of its "
        f"{size:,} examples or more (of the experiment's own {len(experiment.data.train):,}: {passes[1]:.4g})"
    )


def _train_all(
    run: Run, mesh: Mesh, folds: Folds, console: Console, how: dict[str, Any]
) -> list[dict[str, Any]]:
    results, num_folds = [], len(folds)
    changes = functools.partial(dataclasses.replace, keep_best=None)
    for k in range(num_folds):
        console.line(f"fold {k + 1} of {num_folds}")
        definition = run.definition.changed(
            {"folds": num_folds, "fold": k + 1}, functools.partial(changes, data=folds[k])
        )
        part = Run(run.folder / f"fold-{k + 1}", definition, run.resume_command)
        results.append(train_run(part, mesh, **how).record)
    return results


def summarize(experiment: Experiment, run: Run, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the results for folds.json: those of each fold, and their mean with its 95 % interval."""
    identity = experiment.data.identity
    rows = [result["metrics"]["validation"] for result in results]
    values = {name: [_number(row[name]) for row in rows] for name in rows[0]}
    intervals = {
        name: t_interval(of_folds, is_share=all(_is_share(result, name) for result in results))
        for name, of_folds in values.items()
    }
    return {
        "dataset": {"name": identity.name, "version": identity.version, "checksum": identity.checksum},
        "notice": experiment.data.notice,
        "is_selected_on_validation": experiment.stop_at is not None,
        "folds": [
            {
                "folder": f"fold-{k}",
                "sizes": result["dataset"]["sizes"],
                "steps": result["steps"],
                "epochs": result["epochs"],
                "seconds": result["seconds"],
                "metrics": result["metrics"],
            }
            for k, result in enumerate(results, 1)
        ],
        "metrics": {"validation": {name: interval.estimate for name, interval in intervals.items()}},
        "intervals": {
            "validation": {name: [interval.low, interval.high] for name, interval in intervals.items()}
        },
        "better": results[0].get("better", {}),
        "baselines": _baselines(results),
    }


def _baselines(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the baseline over the folds as in result.json; empty if a fold has none.

    The interval of a difference, network minus baseline, is that of Nadeau & Bengio 2003: the variance over
    the folds, times 1 / K + (held-out examples) / (training examples), since the training sets overlap.
    """
    each = [result["baselines"][0] for result in results if result.get("baselines")]
    if len(each) != len(results):
        return []
    names = {one["name"] for one in each}
    metrics, intervals, differences = {}, {}, {}
    for name, better in results[0]["better"].items():
        if any(name not in one["metrics"].get("validation", {}) for one in each):
            continue
        cheap = np.array([_number(one["metrics"]["validation"][name]) for one in each])
        network = np.array([_number(result["metrics"]["validation"][name]) for result in results])
        metrics[name], *intervals[name] = t_interval(
            cheap, is_share=all(_is_share(one, name) for one in each)
        )
        sizes = [result["dataset"]["sizes"] for result in results]
        held_out_ratio = float(np.mean([size["validation"] / size["train"] for size in sizes]))
        interval, p_value = overlapping_folds(network - cheap, held_out_ratio)
        differences[name] = {
            **interval._asdict(),
            "p_value": p_value,
            "test": f"corrected Student over {len(each)} folds",
            "verdict": verdict(interval, p_value, better),
        }
    return [
        {
            "name": names.pop() if len(names) == 1 else "chosen in each fold",
            "seconds": sum(one["seconds"] for one in each),
            "metrics": {"validation": metrics},
            "intervals": {"validation": intervals},
            "differences": {"validation": differences},
        }
    ]


def final_line(summary: dict[str, Any], run: Run) -> str:
    """Returns one line with the metrics, each as `name=value`; accuracy is the last."""
    metrics, intervals = summary["metrics"]["validation"], summary["intervals"]["validation"]
    words = []
    for name in sorted(metrics, key=lambda name: (name == "accuracy", name)):
        low, high = intervals[name]
        words += [f"validation_{name}={metrics[name]:.4f}", f"validation_{name}_ci95={low:.4f}..{high:.4f}"]
    for name, value in sorted(_of_baseline(summary).items()):
        words.append(f"validation_{name}_baseline={value:.4f}")
    dataset = summary["dataset"]
    words += [
        f"folds={len(summary['folds'])}",
        f"stratified={summary['is_stratified']}",
        f"seconds={sum(fold['seconds'] for fold in summary['folds']):.1f}",
        f"dataset={dataset['name']}:{dataset['version']}",
        f"run={run.folder}",
    ]
    if summary["is_selected_on_validation"]:
        words.append("NOTE: each run ended where its own fold looked best")
    if summary["notice"]:
        words.append(f"NOTE: {summary['notice'].splitlines()[0]}")
    return " ".join(words)


def _of_baseline(summary: dict[str, Any]) -> dict[str, float]:
    return {
        name: value
        for baseline in summary["baselines"]
        for name, value in baseline["metrics"]["validation"].items()
    }


def _refuse_leaks(experiment: Experiment) -> None:
    """Raises UserError if the warm start was trained on the rows that are held out here."""
    start = experiment.warm_start
    while isinstance(start, FromExperiment):
        before = start.fn(**start.options)
        if before.data.identity.checksum == experiment.data.identity.checksum:
            raise UserError(
                "the warm start was trained on all of "
                f"{before.data.identity.name}, including the held-out folds; choose another warm start, or "
                "leave --folds out"
            )
        start = before.warm_start


def _is_share(result: dict[str, Any], name: str) -> bool:
    """Whether a metric is a proportion, by the method of the interval of a fold."""
    return result.get("interval_methods", {}).get("validation", {}).get(name) in (WILSON, EFFECTIVE)


def _number(value: float | None) -> float:
    return np.nan if value is None else value  # result.json holds null for a number that is not finite
