"""What a run says about itself: the facts before it starts, its result, one line when it is done."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dl import freezing
from dl.data.splits import short_notice
from dl.evaluation.intervals import t_interval
from dl.experiment import Experiment, abstract
from dl.runs.console import Console, format_count, format_epochs, format_value
from dl.runs.digest import tree_digest
from dl.runs.log import means
from dl.runs.memory import MemoryRun
from dl.runs.provenance import describe_devices
from dl.runs.run import Run
from dl.sharding import format_mesh
from dl.stopping import FINAL_SPLIT
from dl.training.population import Members
from dl.training.progress import Progress
from dl.training.state import num_params
from dl.types import Variables


def introduce(
    console: Console,
    experiment: Experiment,
    run: Run | MemoryRun,
    mesh: Mesh,
    facts: Mapping[str, Any],
    members: Members | None = None,
) -> None:
    """Prints which data, devices, model and folder; `facts` are those of the program."""
    data = experiment.data
    identity = data.identity
    console.line(run.name)
    console.notice(data.notice)
    sizes = ", ".join(f"{size:,} {name}" for name, size in identity.sizes.items())
    kinds = describe_devices(mesh)
    flops = f"{_count_flops(facts, 'train')} an example to train"
    if facts["forward_flops_per_example"]:
        flops = f"{_count_flops(facts, 'forward')} an example forward, {flops}"
    parameters = f"{facts['num_parameters']:,} parameters"
    if frozen := facts["num_frozen_parameters"]:
        parameters += f", of which {frozen:,} frozen and {facts['num_parameters'] - frozen:,} trained"
    seeds = f"seed {experiment.seed}"
    if members is not None:
        varied = ", ".join(["seed", *members.options])
        seeds = f"{len(members)} runs at the same time that differ in {varied}"
    per_epoch = -(-len(data.train) // experiment.batch_size)
    console.facts(
        {
            "data": f"{identity.name} {identity.version}: {sizes}; {data.provenance}; "
            f"sha256 {identity.checksum[:12]}",
            "devices": f"{len(kinds)} x {kinds[0]}, mesh {format_mesh(mesh.shape)}",
            "model": f"{parameters}; {flops}",
            "training": f"{experiment.num_steps:,} steps of {experiment.batch_size} examples "
            f"({format_epochs(experiment.num_steps / per_epoch)} epochs), {seeds}",
            "run": str(run.where),
        }
    )


def _count_flops(facts: Mapping[str, Any], name: str) -> str:
    """Returns FLOPs as published tables count them, and without padding where that differs visibly."""
    with_padding, without = (
        f"{format_count(facts[f'{name}_flops_per_example{convention}'])}FLOPs"
        for convention in ("", "_without_padding")
    )
    return with_padding if with_padding == without else f"{with_padding} ({without} without padding)"


def summarize(
    experiment: Experiment,
    progress: Progress,
    metrics: Mapping[str, Mapping[str, Any]],
    intervals: Mapping[str, Mapping[str, Any]],
    variables: Variables,
    members: Members | None = None,
) -> dict[str, Any]:
    """Returns the figures of a run that has ended, as result.json holds them.

    `intervals` are of 95 %, and `interval_methods` say how: over the seeds where there are several (Student),
    else over the examples, by what they count (`evaluation.spread`).

    Args:
      experiment: what was trained.
      progress: at the end.
      metrics: by split; each figure a scalar, or one value for each of several members.
      intervals: of one run, by split and metric: its bounds and its method.
      variables: that the run ended with; of several members, with a leading axis.
      members: that were trained at the same time.
    """
    result: dict[str, Any] = {
        "metrics": {split: means(values) for split, values in metrics.items()},
        "seed": experiment.seed,
    }
    if progress.stopped_early:
        result["stopped_early"] = progress.stopped_early
    best = progress.best
    chosen = [{"step": step, "value": value} for step, value in zip(best.step, best.value, strict=True)] * (
        experiment.keep_best is not None
    )
    if experiment.keep_best is not None:
        rule = experiment.keep_best
        result["best"] = {"split": rule.split, "metric": rule.metric}
    if members is None:
        if chosen:
            result["best"] |= chosen[0]
        result["intervals"] = {
            split: {name: list(bounds) for name, (*bounds, _) in of_split.items()}
            for split, of_split in intervals.items()
        }
        result["interval_methods"] = {
            split: {name: method for name, (*_, method) in of_split.items()}
            for split, of_split in intervals.items()
        }
        return {**result, "params_digest": tree_digest(variables["params"])}
    result["intervals"] = {
        split: {
            name: list(t_interval(value, is_share=progress.shares.get(name, False))[1:])
            for name, value in values.items()
        }
        for split, values in metrics.items()
    }
    result["interval_methods"] = {
        split: dict.fromkeys(values, f"Student, over {len(members)} seeds")
        for split, values in metrics.items()
    }
    host = jax.device_get(variables["params"])
    result["members"] = [
        {
            **members.describe(k),
            "metrics": {
                split: {name: float(np.asarray(value)[k]) for name, value in values.items()}
                for split, values in metrics.items()
            },
            **({"best": chosen[k]} if chosen else {}),
            "params_digest": tree_digest(jax.tree.map(lambda leaf, k=k: leaf[k], host)),
        }
        for k in range(len(members))
    ]
    return {**result, "params_digest": tree_digest(host)}


def num_trained_parameters(experiment: Experiment) -> int:
    """Returns the number of parameters that the optimizer sees: without frozen ones; nothing is allocated."""
    variables, _ = abstract(experiment)
    trained, _ = freezing.split(variables.get("params", {}), experiment.frozen)
    return num_params(trained)


def describe_data_and_devices(experiment: Experiment, mesh: Mesh) -> dict[str, Any]:
    """Returns what result.json says of the data and of the machine."""
    return {
        "dataset": dataclasses.asdict(experiment.data.identity),
        "notice": experiment.data.notice,
        "devices": describe_devices(mesh),
        "mesh": format_mesh(mesh.shape),
    }


def final_line(result: Mapping[str, Any], run: Run | MemoryRun) -> str:
    """Returns the figures of a finished run as `name=value` words, to be read and to be searched for."""
    figures = [
        f"{split}_{name}={_number(value)}"
        for split, values in result["metrics"].items()
        for name, value in sorted(values.items())
    ]
    dataset = f"{result['dataset']['name']}:{result['dataset']['version']}"
    of_splits = result.get("intervals", {})
    for split in [FINAL_SPLIT] if FINAL_SPLIT in of_splits else of_splits:
        intervals = of_splits[split]
        figures += [
            f"{split}_{name}_ci95={_number(low)}..{_number(high)}"
            for name, (low, high) in sorted(intervals.items())
        ]
    line = (
        f"{' '.join(figures)} steps={result['steps']} seconds={result['seconds']:.1f} "
        f"examples_per_second={result['examples_per_second']:.0f} dataset={dataset} "
        f"run={run.where}"
    )
    if "best" in result and "step" in result["best"]:
        line += f" best_step={result['best']['step']}"
    for warning in result.get("warnings", ()):
        line += f" WARNING: {warning}"
    if result["notice"]:
        line += f" NOTE: {short_notice(result['notice'])}"
    return line


def _number(value: float | None) -> str:
    """Formats a figure; result.json holds None for one that is no number, such as a diverged loss."""
    return "nan" if value is None else format_value(value)
