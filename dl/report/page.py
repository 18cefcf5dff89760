"""The page of a report: the content of the folder of a run, in the templates."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from dl.data.splits import short_notice
from dl.diagnostics.layers import Layer, experiment_layers, format_shapes
from dl.errors import UserError
from dl.experiment import Experiment
from dl.report import curves, plots, sections
from dl.report.attention import attention_section
from dl.report.classifier import Classifier, classifier_sections
from dl.report.explanations import explanations_section
from dl.report.html import fill
from dl.report.language_model import language_section
from dl.report.model_card import model_card
from dl.report.multi_label import multi_label_section
from dl.report.picture import can_be_shown
from dl.report.reconstruction import reconstruction_section
from dl.report.record import Record, mapping, read_record, text
from dl.report.regression import regression_section
from dl.report.robustness import robustness_section
from dl.report.samples import samples_section
from dl.report.task import TaskSection
from dl.report.text_input import texts_of
from dl.report.token_predictions import masked_section, sequence_section, tagging_section
from dl.runs.folder import RunFolder
from dl.runs.predictions import (
    ClassificationOutcomes,
    LanguageModel,
    MaskedLanguageModel,
    MultiLabel,
    Predictions,
    Reconstruction,
    Regression,
    SequenceToSequence,
    Tagging,
)
from dl.sharding import make_mesh
from dl.system.files import replace_text
from dl.task import kind_facts
from dl.training.result import Result
from dl.types import Source

_SECTIONS: Mapping[type, Callable[[Any], TaskSection]] = {
    Regression: regression_section,
    MultiLabel: multi_label_section,
    Reconstruction: reconstruction_section,
    LanguageModel: language_section,
    MaskedLanguageModel: masked_section,
    SequenceToSequence: sequence_section,
    Tagging: tagging_section,
}
TOLERANCE = 1e-4  # largest difference of two accuracies of the same predictions


def write_report(
    folder: Path,
    out: Path,
    experiment: Experiment | None,
    trouble: Sequence[str] = (),
    *,
    is_explained: bool = False,
) -> list[Path]:
    """Writes one self-contained HTML file, without scripts or external files.

    If its table of classes has not all classes, a CSV file next to it has: NAME-classes.csv for NAME.html.

    Args:
      folder: the folder of the run.
      out: the HTML file.
      experiment: the experiment of the run, for layers and pictures. `None` leaves these out.
      trouble: sentences about why there is no experiment, or about its problems.
      is_explained: whether predictions are explained, which takes a few seconds.

    Returns:
      The files that were written.

    Raises:
      UserError: the folder does not hold a run, or a file cannot be written.
    """
    classes_path = out.with_name(f"{out.stem}-classes.csv")
    page, classes = _render(folder, read_record(folder), experiment, trouble, classes_path.name, is_explained)
    written = {out: page} | ({classes_path: classes} if classes else {})
    for path, content in written.items():
        try:
            replace_text(path, content)
        except OSError as error:
            raise UserError(
                f"{path} cannot be written ({error.strerror or error}); choose another file by --out"
            ) from None
    return list(written)


def _render(
    folder: Path,
    record: Record,
    experiment: Experiment | None,
    trouble: Sequence[str],
    classes_file: str,
    is_explained: bool,
) -> tuple[str, str]:
    """Returns the page as HTML, and the CSV of all classes if the page has not all of them."""
    missing = [*record.missing, *trouble]
    if experiment is not None:
        try:
            experiment.data.identity  # reads the data set  # noqa: B018
        except UserError as error:
            missing.append(f"Layers and pictures: {error}.")
            experiment = None
    layers = None if experiment is None else _layers(experiment, missing)
    classifier = _classifier(record, experiment, missing)
    task = _task(record, missing)
    if "disagreement" in record.result:
        missing.append(f"Agreement: {text(record.result['disagreement'])}.")
    split = record.final_split
    seeds = curves.seed_points(record.result, split) if split and record.result.get("members") else []
    budget = sections.budget(record.result)
    starts = [0.0]
    for _, _, share in budget:
        starts.append(starts[-1] + 1000 * share)
    energy, assumptions = sections.energy(record)
    software, runs = sections.environment(record.run)
    units = record.units
    if not record.result and experiment is not None:
        units = kind_facts(experiment.task.kind)["units"]
    shown = curves.curves(record.lines, units)
    robustness = robustness_section(record.robustness)
    attention = None if experiment is None else _attention(folder, record, experiment, missing)
    explanations = None
    if is_explained and experiment is not None and classifier is not None:
        explanations = _explanations(folder, record, experiment, missing)
    samples = samples_section(record.samples)
    figures = sections.figures_table(record)
    baseline = sections.baseline(record, missing)
    contents = [
        ("figures", "Figures", figures.rows),
        ("seeds", "Seeds", seeds),
        ("curves", "Learning curves", shown),
        ("classes", "Classes", classifier),
        ("mistakes", "Mistakes", classifier),
        *([("task", task.title, True)] if task is not None else []),
        ("explanations", "Explanations", explanations),
        ("samples", "Samples", samples),
        ("attention", "Attention", attention),
        ("robustness", "Robustness", robustness),
        ("layers", "Layers", layers),
        *(("cost", "Time, memory, energy", True), ("data", "Data", True), ("options", "Options", True)),
        *(("environment", "Environment", True), ("card", "Model card", True)),
    ]
    page = fill(
        "report.html",
        name=text(record.run.get("experiment")),
        folder=str(folder),
        created=text(record.run["created"]) if "created" in record.run else "",
        notice=record.notice,
        notice_line=short_notice(record.notice),
        headline=sections.headline(record),
        facts=sections.facts(record),
        missing=missing,
        contents=[(id_, title) for id_, title, is_there in contents if is_there],
        figures=figures,
        baseline=baseline,
        seeds=seeds,
        curves=shown,
        classifier=classifier,
        classes_file=classes_file,
        task=task,
        explanations=explanations,
        samples=samples,
        attention=attention,
        robustness=robustness,
        layers=layers,
        budget=budget,
        budget_table=sections.budget_table(budget),
        shares=[(round(x, 1), round(1000 * part[2], 1)) for x, part in zip(starts, budget, strict=False)],
        memory=sections.memory(record.result),
        energy=energy,
        assumptions=assumptions,
        data=sections.data_identity(record),
        options=sections.options_table(record),
        software=software,
        starts=runs,
        card=model_card(record, classifier),
    )
    return page, "" if classifier is None else classifier.all_classes


def _classifier(record: Record, experiment: Experiment | None, missing: list[str]) -> Classifier | None:
    predictions = record.predictions
    if not isinstance(predictions, Predictions | ClassificationOutcomes):
        return None
    if isinstance(predictions, ClassificationOutcomes):
        missing.append(
            "ROC and precision-recall curves of classes: they need the probabilities of all classes, which "
            "would take more than 16 MiB and were not kept."
        )
    pictures, texts = None, None
    if experiment is not None and (source := _source(record, experiment, predictions.split, missing)):
        pictures = source if can_be_shown(source) else None
        texts = texts_of(experiment, source)
    try:
        shown = classifier_sections(predictions, pictures, texts)
    except UserError as error:
        missing.append(f"What needs predictions: {error}.")
        return None
    measured = mapping(mapping(record.result.get("metrics")).get(predictions.split)).get("accuracy")
    is_whole = len(predictions.label) == predictions.num_examples
    is_judged = "kind" in record.result  # by the run itself
    if is_judged or not is_whole or not isinstance(measured, float):
        return shown
    if abs(measured - shown.accuracy) > TOLERANCE:
        missing.append(
            f"Agreement: the kept predictions have the accuracy {shown.accuracy:.4f}, the run measured "
            f"{measured:.4f}. The loss does not measure what the model puts out; look at predict of its Task."
        )
    return shown


def _task(record: Record, missing: list[str]) -> TaskSection | None:
    section = _SECTIONS.get(type(record.predictions))
    try:
        return None if section is None else section(record.predictions)
    except UserError as error:
        missing.append(f"What needs predictions: {error}.")
        return None


def _source(record: Record, experiment: Experiment, split: str, missing: list[str]) -> Source | None:
    """Returns the split of the predictions, if it is available and unchanged."""
    data = experiment.data
    known = mapping(record.result.get("dataset") or record.run.get("dataset")).get("checksum")
    if data.identity.checksum != known:
        missing.append("The pictures: the data set at hand is not the one that the run had.")
        return None
    return data.evaluations.get(split)


def _attention(
    folder: Path, record: Record, experiment: Experiment, missing: list[str]
) -> TaskSection | None:
    """Returns the section of attention weights of a finished run of one seed."""
    return _of_model("Attention", lambda: attention_section(experiment, RunFolder(folder)), record, missing)


def _explanations(
    folder: Path, record: Record, experiment: Experiment, missing: list[str]
) -> TaskSection | None:
    """Returns the section of explanations of a finished classifier of one seed."""
    predictions = record.predictions
    if not isinstance(predictions, Predictions | ClassificationOutcomes):
        return None
    result = Result(experiment, record.result, run=RunFolder(folder), mesh=make_mesh())
    return _of_model("Explanations", lambda: explanations_section(result, predictions), record, missing)


def _of_model(
    title: str, make: Callable[[], TaskSection | None], record: Record, missing: list[str]
) -> TaskSection | None:
    """Returns a section that runs the model of a finished run of one seed."""
    if not record.result or record.result.get("members") or jax.process_count() > 1:
        return None
    try:
        return make()
    except Exception as error:  # the report of everything else must not fail with the model
        brief = (f"{type(error).__name__}: {error}".splitlines() or [""])[0][:200]
        missing.append(f"{title}: {brief}.")
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
    without = sum(layer.flops_without_padding or 0 for layer in layers)
    if without != totals[-1]:
        title += f"; products with padding count, {without:,} FLOPs without them"
    return plots.Table(title, columns, rows, frozenset({len(rows) - 1}))


def _layer_row(layer: Layer) -> tuple[str, ...]:
    return (
        "/".join(layer.path) or "(model)",
        layer.kind,
        format_shapes(layer.input_shapes),
        format_shapes(layer.output_shapes),
        *(f"{count:,}" if count else "" for count in (layer.num_parameters, layer.num_state, layer.flops)),
    )
