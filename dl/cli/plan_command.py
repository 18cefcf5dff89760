"""The command that plans a training step for devices that need not be there."""

import dataclasses
import json
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax

from dl.cli.command import Call
from dl.cli.options import CommandOptions
from dl.errors import UserError
from dl.experiment import Experiment
from dl.runs.console import Console
from dl.runs.definition import Definition

if TYPE_CHECKING:
    from dl.diagnostics.plan import Plan, Prices, Target
    from dl.diagnostics.plan.search import Change

SIZE = "size"  # the option of an experiment that is a ladder of models


@dataclasses.dataclass(frozen=True)
class PlanOptions(CommandOptions):
    """Options of `plan`.

    Attributes:
      target: Devices to plan for, such as tpu:v5e:4x4, tpu:v5p-512, cuda:h100:8 or cpu:8. They need not be
        there.
      mesh: How arrays are split over the devices, such as data=2,fsdp=8 or data=-1,tensor=4. -1 means the
        devices that the other axes leave. Default: data=-1.
      precision: Number format of the model's computation, as in training.
      reduction: How gradients are added over devices, as in training.
      prices: TOML file of prices, in place of the table that dl has; see docs/plans.md.
      largest: Also search the largest batch that fits, and the largest model of an experiment with --size.
      measure: Also run a few steps on the devices of this machine, and compare the memory.
      json: Print the plan as JSON.
    """

    target: str = ""
    mesh: str | None = None
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    reduction: Literal["fast", "exact"] = "fast"
    prices: Path | None = None
    largest: bool = False
    measure: bool = False
    json: bool = False


def plan_step(call: Call) -> int:
    """Compiles the training step for devices that need not be there, and prints what it takes.

    It prints whether the step fits, the memory by kind, FLOPs, bytes moved, exchanges between devices, a
    predicted time and price, and what to change if it does not fit. Nothing is allocated. The exit status is
    1 if the step does not fit.
    """
    from dl.diagnostics.plan import find_target, plan, read_prices  # the step
    from dl.diagnostics.plan.measure import measure
    from dl.diagnostics.plan.text import measured_text, plan_facts
    from dl.training.run_options import with_run_options

    options: PlanOptions = call.own
    if not options.target:
        raise UserError("plan needs --target, such as --target tpu:v5e:4x4, cuda:h100:8 or cpu:8")
    target, prices = find_target(options.target), read_prices(options.prices)
    if target.chip.platform != "cpu" and not options.measure:
        jax.config.update("jax_platforms", "cpu")  # no accelerator of this machine is touched
    _ = target.devices  # a missing compiler is reported before the data are read
    console = Console(is_quiet=options.json)
    made = Definition(call.experiment_fn, call.options).build()
    console.notice(made.data.notice)
    experiment = with_run_options(made, dataclasses.asdict(options))
    measured = None
    if options.measure:
        planned, measured = measure(experiment, target, options.mesh, prices)
    else:
        planned = plan(experiment, target, options.mesh, prices)
    console.facts(plan_facts(planned))
    if measured is not None:
        console.facts({"measured": measured_text(measured)})
    found = _found(call, options, experiment, planned, target, prices)
    for change in found:
        console.facts({"it fits with" if not planned.fits else "largest": _shown(change)})
    if planned.fits is False and not found:
        console.line(
            "  no batch fits: use more devices, --mesh fsdp=N, --precision bfloat16 or a smaller model"
        )
    if options.json:
        record: dict[str, Any] = planned.to_json()
        if measured is not None:
            record["measured"] = {**dataclasses.asdict(measured), "error": measured.error}
        record["changes"] = [{"options": change.text, **change.plan.to_json()} for change in found]
        print(json.dumps(record, indent=2))
    return 1 if planned.fits is False else 0


def _found(
    call: Call,
    options: PlanOptions,
    experiment: Experiment,
    planned: "Plan",
    target: "Target",
    prices: "Prices",
) -> "list[Change]":
    """Returns what fits: changes of a step that does not, and the largest batch and model on demand."""
    from dl.diagnostics.plan.search import Change, changes, largest_batch, largest_size
    from dl.training.run_options import with_run_options

    found: list[Change] = []
    if planned.fits is False:
        found += changes(experiment, target, options.mesh, prices)
    elif options.largest:
        largest = largest_batch(experiment, target, options.mesh, prices)
        found += [Change(f"--batch-size {largest.plan.batch_size}", largest.plan)] if largest else []
    sizes = _sizes(call)
    if sizes and (options.largest or planned.fits is False):

        def build(name: str) -> Experiment:
            definition = Definition(call.experiment_fn, {**call.options, SIZE: name})
            return with_run_options(definition.build(), dataclasses.asdict(options))

        if planned.fits is False:
            sizes = sizes[: sizes.index(call.options[SIZE])]
        model = largest_size(build, sizes, target, options.mesh, prices)
        found += [model] if model else []
    return found


def _sizes(call: Call) -> tuple[str, ...]:
    """Returns the sizes of an experiment that is a ladder of models, from small to large."""
    kind = typing.get_type_hints(call.experiment_fn).get(SIZE)
    return typing.get_args(kind) if typing.get_origin(kind) is Literal else ()


def _shown(change: "Change") -> str:
    from dl.diagnostics.plan.text import size

    memory = change.plan.memory
    return f"{change.text}: {size(memory.peak)} of {size(memory.limit or 0)} on each device"
