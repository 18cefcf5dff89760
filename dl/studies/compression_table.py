"""A table of compressed models: one network, compressed in several ways, and what each model costs.

The network is trained once. Each row is a compressed run of it, or of another row. All models are then timed
in turns, so the machine is the same for all of them. A row is dominated if another one is at least as good in
the metric, in the bytes of its file and in the time of a prediction, and better in one of them.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from dl.data.splits import short_notice
from dl.errors import Diverged, UserError
from dl.experiment import Experiment
from dl.runs.console import Console
from dl.runs.definition import Definition
from dl.runs.provenance import machine, module_name
from dl.runs.run import Run
from dl.runs.tables import Table
from dl.sharding import make_mesh
from dl.studies.benchmark_tables import scale
from dl.studies.compress import Plan, compress
from dl.studies.compression_measures import Measured, measure, table_of
from dl.studies.folder import StudyKind, open_study, plain, usable
from dl.studies.runs import ResumeCommand, with_defaults
from dl.training.loop import train_run

PARENT = "parent"


@dataclasses.dataclass(frozen=True)
class Row:
    """One way to compress.

    Attributes:
      plan: the compression, or the function that plans it; see `studies.compress`.
      fine_tuning: the options of the training after it. `None` means that nothing is trained.
      of: the name of the row that is compressed. Default: the trained network.
    """

    plan: Plan
    fine_tuning: Mapping[str, Any] | None
    of: str = PARENT


@dataclasses.dataclass(frozen=True)
class CompressionTable:
    """The result of the study.

    Attributes:
      folder: the folder with the runs, compression.json, compression.md and compression.png.
      rows: what each model costs; the first is the network itself.
      failures: why a row could not be made, by name.
      notice: what the user must know about the data. `None` means that there is nothing to know.
    """

    folder: Path
    rows: Sequence[Measured]
    failures: Mapping[str, str]
    notice: str | None

    @property
    def table(self) -> Table:
        """The table with marks for rows that are dominated, throughput and energy."""
        made = table_of(self.rows, "compressed models; * marks a row that another one dominates")
        marks = dominated(self.rows)
        cells = []
        for row, old in zip(self.rows, made.rows, strict=True):
            name = f"{row.name} *" if row.name in marks else row.name
            energy = "" if row.joules is None else f"{row.joules * 1e3:.3g}"
            cells.append([name, *old[1:], f"{row.throughput:,.0f}", energy])
        return Table(made.title, [*made.header, "examples/s", "mJ an example"], cells)

    @property
    def markdown(self) -> str:
        """The table, with what a reader must know below it."""
        lines = [
            "The times are medians of rounds in which all models are called in turn, on this machine. kB "
            "packed: the file after zlib. mJ an example: the rated power of the machine times the time of a "
            "prediction in the largest batch, which is an upper estimate.",
            *(f"{name} was not made: {why}." for name, why in self.failures.items()),
            *([f"NOTE: {short_notice(self.notice)}"] if self.notice else []),
        ]
        return "\n\n".join([self.table.to_markdown(), *lines])


def compression_table(
    experiment_fn: Callable[..., Experiment],
    rows: Mapping[str, Row],
    options: Mapping[str, Any] | None = None,
    *,
    folder: Path | None = None,
    mesh: Mesh | None = None,
    console: Console | None = None,
    resume_command: ResumeCommand | None = None,
) -> CompressionTable:
    """Trains a network, compresses it in several ways and measures all models together.

    Args:
      experiment_fn: the function of the experiment.
      rows: the ways to compress, by name. A row that is made of another one comes after it.
      options: the options of the network. An option that is left out has its default.
      folder: the folder of the study. The same folder resumes the study. `None` means runs/NAME-TIME.
      mesh: the devices. `None` means all devices.
      console: where progress is printed.
      resume_command: returns, for a folder, the command line that resumes a stopped study.

    Raises:
      UserError: an argument or the training of the network has a mistake. A row that cannot be made is left
        out, with the reason in `failures`.
    """
    console, mesh = console or Console(), mesh or make_mesh()
    fixed = with_defaults(experiment_fn, options)
    definition = Definition(experiment_fn, fixed)
    notice = definition.build().data.notice
    console.notice(notice)
    name = module_name(experiment_fn)
    parts = (PARENT, *rows, "compression.md", "compression.png")
    kind = StudyKind("table of compressed models", "compression.json", parts)
    with open_study(kind, folder, name.rpartition(".")[2]) as study:
        header = {"experiment": name, "options": plain(fixed), "names": list(rows)}
        study.begin(header)
        again = None if resume_command is None else (lambda _: resume_command(study.folder))
        train_run(Run(study.folder / PARENT, definition, again), mesh, console=console)
        done, failures = [PARENT], {}
        for row_name, row in rows.items():
            console.line(f"--- {row_name}")
            if row.of not in done:
                failures[row_name] = f"there is no {row.of}"
                continue
            try:
                compress(
                    study.folder / row.of,
                    row.plan,
                    study.folder / row_name,
                    fine_tuning=row.fine_tuning,
                    experiment=experiment_fn,
                    mesh=mesh,
                    console=console,
                    resume_command=again,
                )
            except (UserError, Diverged) as error:
                failures[row_name] = str(error)
                console.line(f"{row_name} is left out: {error}")
            else:
                done.append(row_name)
        console.line("measuring the time of predictions")
        measured = measure([study.folder / part for part in done], done, experiment_fn)
        found = CompressionTable(study.folder, measured, failures, notice)
        record = [
            {**dataclasses.asdict(row), "throughput": row.throughput, "is_dominated": row.name in marks}
            for marks in [dominated(measured)]
            for row in measured
        ]
        study.write({**header, "rows": record, "failures": failures, "notice": notice, **machine()})
        with usable(study.folder):
            (study.folder / "compression.md").write_text(found.markdown + "\n", encoding="utf-8")
            plot(measured, study.folder / "compression.png")
        return found


def dominated(rows: Sequence[Measured]) -> set[str]:
    """Returns the names of the rows that another row dominates."""
    small_is_good = "loss" in rows[0].metric
    costs = {
        row.name: (row.value if small_is_good else -row.value, row.num_bytes, min(_per_example(row)))
        for row in rows
    }

    def is_better(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
        return one != other and all(a <= b for a, b in zip(one, other, strict=True))

    return {name for name in costs if any(is_better(costs[other], costs[name]) for other in costs)}


def _per_example(row: Measured) -> list[float]:
    return [seconds / size for size, seconds in row.seconds.items()]


def plot(rows: Sequence[Measured], path: Path) -> None:
    """Writes the metric over the bytes of the file and over the time of an example; hollow: dominated."""
    from matplotlib.figure import Figure

    marks, metric = dominated(rows), rows[0].metric
    factor, label = scale(metric)
    figure = Figure(figsize=(11, 5), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for number, row in enumerate(rows):
        low, high = row.interval or (row.value, row.value)
        margins = [[factor * (row.value - low)], [factor * (high - row.value)]]
        look = {"color": f"C{number % 10}", "mfc": "none" if row.name in marks else f"C{number % 10}"}
        places = (row.num_bytes / 1e3, 1e3 * min(_per_example(row)))
        for axis, x in zip(axes, places, strict=True):
            axis.errorbar([x], [factor * row.value], yerr=margins, fmt="o", capsize=3, label=row.name, **look)
    axes[0].set(xscale="log", xlabel="kB of the file", ylabel=f"test {label}, 95 % interval")
    axes[1].set(xscale="log", xlabel="ms an example, in the largest batch")
    handles, labels = axes[0].get_legend_handles_labels()
    title = f"hollow: another model is at least as good in {metric}, in bytes and in time"
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        fontsize="small",
        ncols=5,
        title=title,
        title_fontsize="small",
    )
    figure.savefig(path, dpi=120)
