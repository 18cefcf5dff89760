"""The summary of a run: facts that are printed before it starts, and one line at its end."""

from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from dl import freezing
from dl.data.splits import short_notice
from dl.experiment import Experiment, variable_shapes
from dl.runs.console import Console, format_count, format_epochs, format_value
from dl.runs.memory import MemoryRun
from dl.runs.provenance import describe_devices
from dl.runs.run import Run
from dl.sharding import format_mesh
from dl.stopping import FINAL_SPLIT
from dl.training.population import Population
from dl.training.single import SINGLE, Single
from dl.training.state import num_params


def introduce(
    console: Console,
    experiment: Experiment,
    run: Run | MemoryRun,
    mesh: Mesh,
    facts: Mapping[str, Any],
    population: Population | Single = SINGLE,
) -> None:
    """Prints the data, devices, model, training and folder of a run; `facts` are those of the program."""
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
    differing = population.in_words(experiment.seed)
    per_epoch = -(-len(data.train) // experiment.batch_size)
    exact = {"reduction": "exact, the same bits on any devices; steps take longer (docs/devices.md)"}
    console.facts(
        {
            "data": f"{identity.name} {identity.version}: {sizes}; {data.provenance}; "
            f"sha256 {identity.checksum[:12]}",
            "devices": f"{len(kinds)} x {kinds[0]}, mesh {format_mesh(mesh.shape)}",
            "model": f"{parameters}; {flops}",
            "training": f"{experiment.num_steps:,} steps of {experiment.batch_size} examples "
            f"({format_epochs(experiment.num_steps / per_epoch)} epochs), {differing}",
            **(exact if experiment.reduction == "exact" else {}),
            "run": run.where,
        }
    )


def _count_flops(facts: Mapping[str, Any], name: str) -> str:
    """Returns text about FLOPs as published tables count them, and without padding if that differs."""
    with_padding, without = (
        f"{format_count(facts[f'{name}_flops_per_example{convention}'])}FLOPs"
        for convention in ("", "_without_padding")
    )
    return with_padding if with_padding == without else f"{with_padding} ({without} without padding)"


def num_trained_parameters(experiment: Experiment) -> int:
    """Returns the number of parameters that are not frozen. Nothing is allocated."""
    trained, _ = freezing.split(variable_shapes(experiment).get("params", {}), experiment.frozen)
    return num_params(trained)


def final_line(result: Mapping[str, Any], run: Run | MemoryRun) -> str:
    """Returns one line with the metrics of a finished run, each as `name=value`."""
    words = [
        f"{split}_{name}={_number(value)}"
        for split, values in result["metrics"].items()
        for name, value in sorted(values.items())
    ]
    dataset = f"{result['dataset']['name']}:{result['dataset']['version']}"
    of_splits = result.get("intervals", {})
    for split in [FINAL_SPLIT] if FINAL_SPLIT in of_splits else of_splits:
        intervals = of_splits[split]
        words += [
            f"{split}_{name}_ci95={_number(low)}..{_number(high)}"
            for name, (low, high) in sorted(intervals.items())
        ]
    line = (
        f"{' '.join(words)} steps={result['steps']} seconds={result['seconds']:.1f} "
        f"examples_per_second={result['examples_per_second']:.0f} dataset={dataset} "
        f"run={run.where}"
    )
    for baseline in result.get("baselines", ()):
        for split, values in baseline["metrics"].items():
            for name, value in sorted(values.items()):
                line += f" {split}_{name}_baseline={_number(value)}"
    if "best" in result and "step" in result["best"]:
        line += f" best_step={result['best']['step']}"
    for warning in result.get("warnings", ()):
        line += f" WARNING: {warning}"
    if result["notice"]:
        line += f" NOTE: {short_notice(result['notice'])}"
    return line


def _number(value: float | None) -> str:
    """Formats a metric; result.json holds null for a number that is not finite, such as a diverged loss."""
    return "nan" if value is None else format_value(value)
