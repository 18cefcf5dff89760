"""The sections of a report that every run has: headline, budget, energy, options, environment, data."""

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from dl.data.splits import short_notice
from dl.report.plots import Table
from dl.report.record import Record, interval_of, items, mapping, number, text
from dl.report.utilization import peak_flops
from dl.runs.baseline import baseline_table
from dl.runs.console import format_epochs
from dl.system.energy import estimate_energy
from dl.task import FRACTION

MAX_STARTS = 50  # rows in the table of starts
MAX_SEEDS = 50  # seeds that are listed
MAX_FIGURES = 200  # metrics in the table


def headline(record: Record) -> Mapping[str, str] | None:
    """Returns the headline metric with its interval as text; `None` if the run has not ended."""
    split = record.final_split
    if split is None:
        return None
    figures = mapping(mapping(record.result.get("metrics")).get(split))
    stated = record.result.get("headline")
    name = next((name for name in (stated, "accuracy", *figures) if name in figures), None)
    if name is None:
        return None
    unit = record.units.get(name, "")
    value = number(figures[name])
    seeds = len(items(record.result.get("members")))
    bounds = interval_of(record.result, split, name)
    shown, spread = _share(value, unit), "no interval is known for this figure"
    if bounds is not None:
        low, high = bounds
        methods = mapping(mapping(record.result.get("interval_methods")).get(split))
        method = f", {text(methods[name])}" if name in methods else ""
        spread = f"95 % interval {_share(low, unit)} to {_share(high, unit)}{method}"
        if seeds:
            shown += f" ± {(high - low) / 2 * (100.0 if unit == FRACTION else 1.0):.2g}"
    named = f"{split} {name}".replace("_", " ")
    if unit and unit not in (FRACTION, name.replace("_", " ")):
        named += f", {unit}"
    return {"name": named, "value": shown, "interval": spread}


def figures_table(record: Record) -> Table:
    """Returns a table of every metric of every split, with its interval if there is one."""
    rows = []
    for split, figures in mapping(record.result.get("metrics")).items():
        for name, value in mapping(figures).items():
            bounds = interval_of(record.result, split, name)
            interval = "" if bounds is None else f"{bounds[0]:.5g} to {bounds[1]:.5g}"
            unit = record.units.get(name, "")
            rows.append((str(split), name.replace("_", " "), f"{number(value):.5g}", unit, interval))
    columns = ("split", "figure", "value", "unit", "95 % interval")
    title = "Figures at the end of the run"
    if len(rows) > MAX_FIGURES:
        title = f"The first {MAX_FIGURES} of {len(rows):,} figures at the end of the run"
    return Table(title, columns, rows[:MAX_FIGURES])


def baseline(record: Record, missing: list[str]) -> Table | None:
    """Returns a table of the network beside its baseline; `None` if the run has none."""
    try:
        found = baseline_table({"": record.result})
    except (AttributeError, KeyError, TypeError, ValueError):
        missing.append("The baseline: result.json does not state it in a form that can be read.")
        return None
    if found is None:
        return None
    rows = [tuple(map(text, row[1:])) for row in found.rows]
    return Table("The network beside its baseline", ("figure", *found.header[2:]), rows[:MAX_FIGURES])


def facts(record: Record) -> list[tuple[str, str]]:
    """Returns the main facts of a run, beside the headline."""
    result, run = record.result, record.run
    data = mapping(result.get("dataset") or run.get("dataset"))
    found = [("data", f"{text(data.get('name'))} {text(data.get('version'))}")]
    parameters = number(result.get("num_parameters", run.get("num_parameters")))
    if math.isfinite(parameters):
        found.append(("parameters", f"{parameters:,.0f}"))
    if result:
        epochs = number(result.get("epochs"))
        passes = f"{format_epochs(epochs)} epoch{'' if epochs == 1 else 's'}"
        found.append(("steps", f"{number(result.get('steps')):,.0f} ({passes})"))
        used = used_values(record)
        found += [(name, used[name]) for name in ("batch size", "highest learning rate") if name in used]
        found.append(("wall time", duration(number(result.get("seconds")))))
        found.append(("throughput", f"{number(result.get('examples_per_second')):,.0f} training examples/s"))
        found += _utilization(result)
    found += _flops(result)
    seeds = [text(mapping(member).get("seed")) for member in items(result.get("members"))]
    stated = text(result.get("seed", mapping(run.get("options")).get("seed", "not stated")))
    found.append(("seeds", ", ".join(seeds[:MAX_SEEDS])) if seeds else ("seed", stated))
    if best := mapping(result.get("best")):
        step = f" at step {text(best['step'])}" if "step" in best else ""
        found.append(("kept", f"the best {text(best.get('split'))} {text(best.get('metric'))}{step}"))
    if "stopped_early" in result:
        found.append(("stopped early", text(result["stopped_early"])))
    for name, signature in mapping(result.get("signatures")).items():
        found.append((f"signature of {name}".replace("_", " "), text(signature)))
    if "params_digest" in result:
        found.append(("digest of the parameters", text(result["params_digest"])))
    return found


def used_values(record: Record) -> dict[str, str]:
    """Returns the values that the run used for options that may be None, as text."""
    run, result = record.run, record.result
    steps, batch_size = number(run.get("num_steps")), number(run.get("batch_size"))
    size = number(mapping(mapping(run.get("dataset")).get("sizes")).get("train"))
    rates = [number(line.get("learning_rate")) for line in record.lines if line.get("kind") == "train"]
    epochs = steps / math.ceil(size / batch_size) if size >= 1 and batch_size >= 1 else math.nan
    known = {
        "steps": (steps, f"{steps:,.0f}"),
        "epochs": (epochs, format_epochs(epochs)),
        "batch size": (batch_size, f"{batch_size:,.0f}"),
        "highest learning rate": (max(filter(math.isfinite, rates), default=math.nan), ""),
        "seed": (number(result.get("seed")), text(result.get("seed"))),
    }
    return {name: shown or f"{value:.4g}" for name, (value, shown) in known.items() if math.isfinite(value)}


# The names of the options with these values.
_USED = {
    "num_steps": "steps",
    "num_epochs": "epochs",
    "batch_size": "batch size",
    "learning_rate": "highest learning rate",
    "peak_learning_rate": "highest learning rate",
    "seed": "seed",
}


def _flops(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns the forward FLOPs per example, with products with padding (as in tables) and without."""
    flops = number(result.get("forward_flops_per_example"))
    without = number(result.get("forward_flops_per_example_without_padding"))
    found = [("forward FLOPs an example", f"{flops:,.0f}")] if math.isfinite(flops) else []
    if math.isfinite(without) and without != flops:
        found.append(("the same without padding", f"{without:,.0f}"))
    return found


def _utilization(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns the FLOPs per second of training, and their fraction of the peak of the devices."""
    flops = number(result.get("examples_per_second")) * number(result.get("train_flops_per_example"))
    if not math.isfinite(flops):
        return []
    found = [("computed in training", f"{flops / 1e9:,.1f} GFLOPs a second")]
    if peak := peak_flops([text(kind) for kind in items(result.get("devices"))]):
        found.append(("model FLOPs utilization", f"{percent(flops / peak)} of the devices' 16-bit peak"))
    return found


def budget(result: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """Returns the parts of the wall time: name, seconds and fraction of the total."""
    total = number(result.get("seconds"))
    if not total > 0:
        return []
    waiting = number(result.get("input_seconds"))
    parts = {
        "compilation": number(result.get("compile_seconds")),
        "waiting for input": waiting,
        "training steps": number(result.get("train_seconds")) - (waiting if math.isfinite(waiting) else 0.0),
        "evaluation": number(result.get("evaluation_seconds")),
        "saving": number(result.get("saving_seconds")),
    }
    known = {name: seconds for name, seconds in parts.items() if math.isfinite(seconds)}
    known["rest (initialisation, restoring, recording)"] = max(0.0, total - sum(known.values()))
    return [(name, seconds, min(seconds / total, 1.0)) for name, seconds in known.items()]


def budget_table(parts: Sequence[tuple[str, float, float]]) -> Table:
    rows = [(name, duration(seconds), percent(share)) for name, seconds, share in parts]
    return Table("Where the wall time went", ("part", "time", "share"), rows)


def memory(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns the peak memory of the last start."""
    peak = mapping(result.get("peak_memory_bytes"))
    words = {"host": "host (resident memory of the process)", "device": "device (of the fullest one)"}
    return [(words[name], f"{number(peak[name]) / 2**20:,.0f} MiB") for name in words if name in peak]


def energy(record: Record) -> tuple[list[tuple[str, str]], Sequence[str]]:
    """Returns the estimate as names and values, and its assumptions; or why there is no estimate."""
    seconds = number(record.result.get("seconds"))
    starts = [mapping(start) for start in items(record.run.get("starts"))]
    cores = (
        number(starts[-1].get("cpus")) * max(number(starts[-1].get("processes")), 1) if starts else math.nan
    )
    if not (seconds >= 0 and cores >= 1 and math.isfinite(seconds * cores)):
        return [], ["There is no estimate: the time or the number of cores is not recorded."]
    devices = [text(kind) for kind in items(record.result.get("devices"))]
    estimate = estimate_energy(devices, int(cores), seconds)
    if isinstance(estimate, str):
        return [], [f"There is no estimate: {estimate}."]
    return [
        ("power", f"{estimate.watts:,.4g} W"),
        ("energy, at most about", f"{estimate.kilowatt_hours * 1000:,.3g} Wh"),
        ("carbon dioxide", f"{estimate.grams_co2:,.3g} g"),
    ], estimate.assumptions


def options_table(record: Record) -> Table:
    """Returns a table of the options, with the value that was used for a None. Changed options are marked."""
    run, used = record.run, used_values(record)
    options, defaults = mapping(run.get("options")), mapping(run.get("defaults"))
    rows, marked = [], set()
    for place, (name, value) in enumerate(options.items()):
        is_known = name in defaults
        is_changed = is_known and defaults[name] != value
        if is_changed:
            marked.add(place)
        default = text(defaults[name]) if is_known else "not recorded"
        shown = text(value)
        if value is None and _USED.get(str(name)) in used:
            shown += f" (used: {used[_USED[str(name)]]})"
        rows.append((str(name), shown, default, "changed" if is_changed else ""))
    return Table("Options", ("option", "value", "default", ""), rows, frozenset(marked))


def environment(run: Mapping[str, Any]) -> tuple[Table, Table]:
    """Returns tables of the software versions, and of every start of the run with its machine."""
    versions = [(str(name), text(version)) for name, version in mapping(run.get("versions")).items()]
    commit = run.get("commit")
    versions.append(("commit", text(commit) if commit else "no git checkout"))
    if run.get("uncommitted_changes"):
        versions.append(("uncommitted changes", "yes: the commit is not all of the code"))
    versions.append(("digest of the experiment's code", text(run.get("code", ""))))
    columns = ("time", "host", "platform", "cpus", "processes", "devices", "mesh", "argv")
    rows = []
    starts = items(run.get("starts"))
    for start in map(mapping, starts[-MAX_STARTS:]):
        words = start.get("argv")
        argv = shlex.join(map(text, words)) if isinstance(words, list) else text(words)
        kinds = start.get("devices")
        devices = ", ".join(map(text, kinds)) if isinstance(kinds, list) else text(kinds)
        rows.append(
            (*(text(start.get(name, "")) for name in columns[:5]), devices, text(start.get("mesh")), argv)
        )
    title = "Starts"
    if len(starts) > MAX_STARTS:
        title = f"The last {MAX_STARTS} of {len(starts):,} starts"
    return Table("Software", ("package", "version"), versions), Table(title, columns, rows)


def data_identity(record: Record) -> list[tuple[str, str]]:
    """Returns the identity of the data that the metrics were measured on."""
    data = mapping(record.result.get("dataset") or record.run.get("dataset"))
    found = [(name, text(data[name])) for name in ("name", "version", "checksum") if name in data]
    found += [
        (f"examples of {split}", format_count(size)) for split, size in mapping(data.get("sizes")).items()
    ]
    if "initial" in record.run:
        found.append(("digest of the variables at the start", text(record.run["initial"])))
    return [*found, ("notice", short_notice(record.notice) or "none")]


def duration(seconds: float) -> str:
    """Returns a time as text: `12.3 s`, `4 min 05 s`, `3 h 20 min`."""
    if not math.isfinite(seconds):
        return "not recorded"
    if seconds < 60:
        return f"{seconds:.3g} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def percent(share: float) -> str:
    return f"{share:.1%}".replace("%", " %")


def _share(value: float, unit: str) -> str:
    return f"{value:.2%}".replace("%", " %") if unit == FRACTION else f"{value:.4g}"


def format_count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else text(value)
