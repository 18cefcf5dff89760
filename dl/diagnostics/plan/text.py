"""A plan as text for a terminal."""

from collections.abc import Mapping

from dl.diagnostics.plan.measure import Measured
from dl.diagnostics.plan.records import Memory, Plan
from dl.runs.console import format_count
from dl.sharding import format_mesh


def plan_facts(plan: Plan) -> Mapping[str, str]:
    """Returns the parts of a plan as labels and text."""
    chip = plan.target.chip
    facts = {
        "devices": f"{plan.target.num_devices} x {chip.name}, mesh {format_mesh(plan.mesh)}",
        "model": f"{format_count(plan.num_parameters).strip()} parameters, batch {plan.batch_size:,}, "
        f"{plan.num_steps:,} steps",
        "fits": _fits(plan),
        "memory": _memory(plan.memory),
        "FLOPs": f"{count(plan.flops)}FLOP a step, {plan.dtype}; "
        f"{count(plan.model_flops)}FLOP of the model (3 x forward)",
    }
    if plan.bytes_moved is not None:
        facts["bytes moved"] = f"{size(plan.bytes_moved)} a step on each device"
        facts["collectives"] = _collectives(plan)
    if plan.roofline is not None:
        line = plan.roofline
        facts["step time"] = (
            f"{seconds(line.seconds)}: compute {seconds(line.compute)}, memory {seconds(line.memory)}, "
            f"collectives {seconds(line.collectives)}; {seconds(line.best_seconds)} if all overlap"
        )
        facts["MFU"] = f"{plan.utilization:.0%} at this time".replace("%", " %")
        facts["assumed"] = _assumptions(plan)
    elif not plan.problem:
        facts["step time"] = "not known: the table of hardware has no speed of this device; --measure it"
    if plan.price_per_hour is not None:
        money = f"{plan.price_per_hour:,.2f} {plan.prices.currency} an hour"
        if plan.price_of_run is not None and plan.hours is not None:
            money += f", {plan.price_of_run:,.2f} for {_hours(plan.hours)} of steps"
        facts["price"] = f"{money} (list prices of {plan.prices.date})"
    for number, note in enumerate(plan.notes, 1):
        facts[f"note {number}"] = note
    return facts


def measured_text(measured: Measured) -> str:
    """Returns what was measured beside what was planned, as one line."""
    error = f"{measured.error:+.1%}".replace("%", " %")
    return (
        f"{size(measured.peak)} on each device ({measured.what}); the plan states "
        f"{size(measured.predicted)}, {error}; a step took {seconds(measured.seconds)}"
    )


def size(num_bytes: float) -> str:
    """Returns a number of bytes with its prefix: `1.50 GiB`."""
    for factor, unit in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.{max(3 - len(str(int(num_bytes / factor))), 0)}f} {unit}"
    return f"{num_bytes:.0f} B"


def count(value: float) -> str:
    """Returns a large number with its prefix: `1.50 P`."""
    return f"{value / 1e15:,.3g} P" if value >= 1e15 else format_count(value)


def seconds(value: float) -> str:
    """Returns a time with its unit: `12.3 ms`."""
    for factor, unit in ((1.0, "s"), (1e-3, "ms")):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value / 1e-6:.3g} us"


def _fits(plan: Plan) -> str:
    memory = plan.memory
    if memory.limit is None:
        return f"{size(memory.peak)} on each device, whose memory is not known"
    both = f"{size(memory.peak)} of {size(memory.limit)} on each device"
    if memory.fits:
        return f"yes, {both}"
    more = "at least " if memory.temporaries is None and memory.stated is None else ""
    return f"NO, {more}{both}: {plan.problem or 'it needs more than there is'}"


def _memory(memory: Memory) -> str:
    parts = {
        "parameters": memory.parameters,
        "optimizer": memory.optimizer,
        "other state": memory.other_state,
        "batch": memory.batch,
        "data": memory.data,
        "padding": memory.padding,
        "program": memory.program,
    }
    shown = [f"{name} {size(value)}" for name, value in parts.items() if value >= 2**10]
    if memory.temporaries is not None:
        shown.append(f"activations and temporaries {size(memory.temporaries)}")
    return ", ".join(shown)


def _collectives(plan: Plan) -> str:
    shown = [f"{c.count:,} {c.kind} of {c.group} devices, {size(c.size)}" for c in plan.collectives]
    return "; ".join(shown) or "none"


def _hours(hours: float) -> str:
    return f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"


def _assumptions(plan: Plan) -> str:
    chip = plan.target.chip
    assert chip.bandwidth is not None
    text = (
        f"a roofline: products at {format_count(chip.peak(plan.dtype))}FLOP/s, memory at "
        f"{format_count(chip.bandwidth)}B/s, at the same time"
    )
    if plan.collectives:
        assert chip.link_bandwidth is not None
        text += f"; then rings, a device sends {format_count(chip.link_bandwidth)}B/s over all its links"
        if chip.torus_axes:
            text += f", of which a group within the torus uses 1/{chip.torus_axes}"
    return text + "; real steps take longer"
