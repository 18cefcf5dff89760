"""The page: everything that a run's folder tells, put into the templates."""

import base64
import hashlib
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from dl.data.source import Source
from dl.errors import UserError
from dl.experiment import Experiment
from dl.report import curves, plots, sections
from dl.report.classifier import Classifier, can_be_shown, classifier_sections
from dl.report.record import Record, mapping, read_record, text
from dl.report.robustness import robustness_section
from dl.summary import experiment_layers
from dl.tabulate import Layer, format_shapes

TOLERANCE = 1e-4  # by which two accuracies of the same predictions may differ


def write_report(folder: Path, out: Path, experiment: Experiment | None, trouble: Sequence[str] = ()) -> None:
    """Writes one self-contained HTML file: no script, nothing that is loaded from elsewhere.

    Args:
      folder: of the run.
      out: the file.
      experiment: of the run, for layers and pictures; the report is written without it too.
      trouble: why there is no experiment, or what is wrong with it, in sentences.

    Raises:
      UserError: the folder holds no run, or the file cannot be written.
    """
    page = render(folder, read_record(folder), experiment, trouble)
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        # JSON may hold half a surrogate pair, which no encoding of text has.
        temporary.write_bytes(page.encode("utf-8", "backslashreplace"))
        temporary.replace(out)
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({error.strerror or error}); choose another file by --out"
        ) from None


def render(folder: Path, record: Record, experiment: Experiment | None, trouble: Sequence[str] = ()) -> str:
    """Returns the page as HTML."""
    import jinja2
    from markupsafe import Markup

    missing = [*record.missing, *trouble]
    if experiment is not None:
        try:
            experiment.data.identity  # reads the data set  # noqa: B018
        except UserError as error:
            missing.append(f"Layers and pictures: {error}.")
            experiment = None
    layers = None if experiment is None else _layers(experiment, missing)
    classifier = _classifier(record, experiment, missing)
    split = record.final_split
    seeds = curves.seed_points(record.result, split) if split and record.result.get("members") else []
    budget = sections.budget(record.result)
    starts = [0.0]
    for _, _, share in budget:
        starts.append(starts[-1] + 1000 * share)
    energy, assumptions = sections.energy(record)
    software, runs = sections.environment(record.run)
    shown = curves.curves(record.lines)
    robustness = robustness_section(record.robustness)
    figures = sections.figures_table(record)
    style = resources.files("dl.report").joinpath("templates/style.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    contents = [
        ("figures", "Figures", figures.rows),
        ("seeds", "Seeds", seeds),
        ("curves", "Learning curves", shown),
        ("classes", "Classes", classifier),
        ("mistakes", "Mistakes", classifier),
        ("robustness", "Robustness", robustness),
        ("layers", "Layers", layers),
        *(("cost", "Time, memory, energy", True), ("data", "Data", True), ("options", "Options", True)),
        *(("environment", "Environment", True), ("card", "Model card", True)),
    ]
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("dl.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template("report.html").render(
        name=text(record.run.get("experiment")),
        folder=str(folder),
        created=text(record.run["created"]) if "created" in record.run else "",
        notice=record.notice,
        notice_line=next(iter(record.notice.splitlines()), ""),
        headline=sections.headline(record),
        facts=sections.facts(record),
        missing=missing,
        contents=[(id_, title) for id_, title, is_there in contents if is_there],
        figures=figures,
        seeds=seeds,
        curves=shown,
        classifier=classifier,
        robustness=robustness,
        layers=layers,
        budget=budget,
        budget_table=sections.budget_table(budget),
        shares=[(round(x, 1), round(1000 * part[2], 1)) for x, part in zip(starts, budget, strict=False)],
        memory=sections.memory(record.result),
        energy=energy,
        assumptions=assumptions,
        data=sections.data_identity(record),
        options=sections.options_table(record.run),
        software=software,
        starts=runs,
        card=sections.model_card(record, classifier),
        size=plots,
        style=Markup(style),  # a file of this package; everything else is escaped
        style_hash=Markup(f"sha256-{digest}"),
    )


def _classifier(record: Record, experiment: Experiment | None, missing: list[str]) -> Classifier | None:
    predictions = record.predictions
    if predictions is None:
        return None
    pictures = None
    if experiment is not None:
        pictures = _pictures(record, experiment, predictions.split, missing)
    try:
        shown = classifier_sections(predictions, pictures)
    except UserError as error:
        missing.append(f"What needs predictions: {error}.")
        return None
    measured = mapping(mapping(record.result.get("metrics")).get(predictions.split)).get("accuracy")
    is_whole = len(predictions.label) == predictions.num_examples
    if isinstance(measured, float) and is_whole and abs(measured - shown.accuracy) > TOLERANCE:
        missing.append(
            f"Agreement: the kept predictions have the accuracy {shown.accuracy:.4f}, the run measured "
            f"{measured:.4f}. The loss does not measure what the model puts out; see Experiment.predict_fn."
        )
    return shown


def _pictures(record: Record, experiment: Experiment, split: str, missing: list[str]) -> Source | None:
    """Returns the split whose rows the predictions number, if it is at hand and is the very same."""
    data = experiment.data
    known = mapping(record.result.get("dataset") or record.run.get("dataset")).get("checksum")
    if data.identity.checksum != known:
        missing.append("The pictures: the data set at hand is not the one that the run had.")
    elif (source := data.evaluations.get(split)) is not None and can_be_shown(source):
        return source
    return None


def _layers(experiment: Experiment, missing: list[str]) -> plots.Table | None:
    layers = experiment_layers(experiment)
    if not layers:
        missing.append("The layers: the loss calls no Linen module.")
        return None
    rows = [_layer_row(layer) for layer in layers]
    totals = [
        sum(getattr(layer, name) for layer in layers) for name in ("num_parameters", "num_state", "flops")
    ]
    rows.append(("total", "", "", "", *(f"{total:,}" for total in totals)))
    columns = ("layer", "module", "input", "output", "parameters", "other state", "forward FLOPs")
    title = "Layers, one example; a multiply-add is 2 FLOPs"
    return plots.Table(title, columns, rows, frozenset({len(rows) - 1}))


def _layer_row(layer: Layer) -> tuple[str, ...]:
    return (
        "/".join(layer.path) or "(model)",
        layer.kind,
        format_shapes(layer.input_shapes),
        format_shapes(layer.output_shapes),
        *(f"{count:,}" if count else "" for count in (layer.num_parameters, layer.num_state, layer.flops)),
    )
