"""What a run says about itself on the screen: the facts before it starts, one line when it is done."""

from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from dl.console import Console, format_count
from dl.experiment import Experiment
from dl.run import Run, describe_devices
from dl.sharding import format_mesh


def introduce(
    console: Console, experiment: Experiment, run: Run, mesh: Mesh, facts: Mapping[str, Any]
) -> None:
    """Prints which data, devices, model and folder; `facts` are those of the program."""
    data = experiment.data
    identity = data.identity
    console.line(run.name)
    if data.notice:
        console.box("NOT THE DATA YOU MAY EXPECT", data.notice)
    sizes = ", ".join(f"{size:,} {name}" for name, size in identity.sizes.items())
    kinds = describe_devices(mesh)
    flops = f"{format_count(facts['train_flops_per_example'])}FLOPs an example to train"
    if facts["forward_flops_per_example"]:
        flops = f"{format_count(facts['forward_flops_per_example'])}FLOPs an example forward, {flops}"
    per_epoch = -(-len(data.train) // experiment.batch_size)
    console.facts(
        {
            "data": f"{identity.name} {identity.version}: {sizes}; {data.provenance}; "
            f"sha256 {identity.checksum[:12]}",
            "devices": f"{len(kinds)} x {kinds[0]}, mesh {format_mesh(mesh.shape)}",
            "model": f"{facts['num_parameters']:,} parameters; {flops}",
            "training": f"{experiment.num_steps:,} steps of {experiment.batch_size} examples "
            f"({experiment.num_steps / per_epoch:g} epochs), seed {experiment.seed}",
            "run": str(run.folder),
        }
    )


def final_line(result: Mapping[str, Any], run: Run) -> str:
    """Returns the figures of a finished run as `name=value` words, to be read and to be searched for."""
    figures = [
        f"{split}_{name}={value:.4f}"
        for split, values in result["metrics"].items()
        for name, value in sorted(values.items())
    ]
    dataset = f"{result['dataset']['name']}:{result['dataset']['version']}"
    line = (
        f"{' '.join(figures)} steps={result['steps']} seconds={result['seconds']:.1f} "
        f"examples_per_second={result['examples_per_second']:.0f} dataset={dataset} "
        f"run={run.folder}"
    )
    if result["notice"]:
        line += f" NOTE: {result['notice'].splitlines()[0]}"
    return line
