"""The ladder of language models on four machines, as the table of docs/plans.md.

    python -m benchmarks.plans                    # all rows, hours on two cores
    python -m benchmarks.plans 124m tpu:v6e-8     # the rows that contain all of these words

It compiles the training step of each size of `gpt_ladder` for each machine, and replaces the rows that it has
computed. It needs the extras `tpu` and, for the rows of GPUs, `cuda`; no device is needed. Each
row is computed by a process of its own, so that its memory is given back.
"""

import subprocess
import sys
from pathlib import Path

import jax

from dl.diagnostics.plan import Plan, find_target, plan
from dl.diagnostics.plan.text import count, seconds, size
from dl.sharding import format_mesh
from dl.training.run_options import with_run_options
from experiments import gpt_ladder

PAGE = Path(__file__).parent.parent / "docs" / "plans.md"
MACHINES = ("tpu:v5e-256", "tpu:v5p-512", "tpu:v6e-8", "cuda:h100:8")
SEQUENCE_LENGTH = 2048
ROWS_PER_DEVICE = 1  # sequences of a micro-batch on each device
FLAG = "--row"
RULE = "|---|---|---|---:|---|---:|---:|---:|---:|---:|"  # ends the head of the table, the last of the page


def compute(model: str, machine: str) -> Plan:
    """Returns the plan of a size on a machine: fully sharded, in bfloat16, one sequence on each device."""
    target = find_target(machine)
    made = gpt_ladder.experiment(
        size=model,  # type: ignore[arg-type]
        sequence_length=SEQUENCE_LENGTH,
        batch_size=ROWS_PER_DEVICE * target.num_devices,
    )
    mesh = f"fsdp={target.num_devices}"
    return plan(with_run_options(made, {"precision": "bfloat16"}), target, mesh)


def row_of(model: str, machine: str, planned: Plan) -> str:
    """Returns the row of the table of a plan."""
    memory = planned.memory
    is_bound = memory.temporaries is None and memory.stated is None
    cells = [
        model,
        f"`{machine}`",
        f"`{format_mesh(planned.mesh)}`",
        f"{planned.batch_size}",
        "yes" if planned.fits else "**no**",
        f"{'> ' if is_bound else ''}{size(memory.peak)}",
        f"{count(planned.model_flops)}FLOP",
    ]
    if planned.roofline is None:
        cells += ["", "", ""]
    else:
        tokens = planned.batch_size * SEQUENCE_LENGTH / planned.roofline.seconds
        price = (planned.price_per_hour or 0) / 3600 / tokens * 1e9
        cells += [
            f"{seconds(planned.roofline.best_seconds)} to {seconds(planned.roofline.seconds)}",
            f"{planned.utilization:.0%}".replace("%", " %"),
            f"{price:,.2f}",
        ]
    return f"| {' | '.join(cells)} |"


def with_row(text: str, row: str) -> str:
    """Returns the page with a row in its place, instead of an earlier row of the same model and machine."""
    head, rule, rest = text.partition(RULE)
    rows = {_place(line): line for line in [*rest.strip().splitlines(), row]}
    return "\n".join([head + rule, *(rows[place] for place in sorted(rows)), ""])


def _place(row: str) -> tuple[int, int]:
    """Returns where a row stands: by machine, then by size."""
    model, machine = (cell.strip(" `") for cell in row.split("|")[1:3])
    return MACHINES.index(machine), list(gpt_ladder.SIZES).index(model)


def main(words: list[str]) -> None:
    if words[:1] == [FLAG]:
        jax.config.update("jax_platforms", "cpu")
        print(row_of(*words[1:], compute(*words[1:])))
        return
    for machine in MACHINES:
        for model in gpt_ladder.SIZES:
            if not set(words) <= {model, machine}:
                continue
            command = [sys.executable, "-m", "benchmarks.plans", FLAG, model, machine]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{model} on {machine} failed:\n{done.stderr[-2000:]}")
            row = done.stdout.splitlines()[-1]
            print(row, flush=True)
            PAGE.write_text(with_row(PAGE.read_text("utf-8"), row), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
