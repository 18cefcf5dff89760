"""The model card of a run (Mitchell et al. 2019), as far as the run can fill it."""

import math
from collections.abc import Sequence

from dl.data.splits import short_notice
from dl.report.classifier import Classifier
from dl.report.record import Record, mapping, number, text
from dl.report.sections import format_count, headline

INTENDED_USE = (
    "Research and teaching: to check, compare and repeat a measurement. Nothing here was tested for "
    "decisions about people, or on other data than those named below."
)


def model_card(record: Record, classifier: Classifier | None) -> list[tuple[str, Sequence[str]]]:
    """Returns the sections of a model card (Mitchell et al. 2019) as far as the run can fill them."""
    data = mapping(record.result.get("dataset") or record.run.get("dataset"))
    name = f"{text(data.get('name'))} {text(data.get('version'))}"
    sizes = ", ".join(f"{format_count(size)} {split}" for split, size in mapping(data.get("sizes")).items())
    parameters = number(record.result.get("num_parameters", record.run.get("num_parameters")))
    model = [f"Made by the experiment {text(record.run.get('experiment'))}."]
    if math.isfinite(parameters):
        model.append(f"{parameters:,.0f} parameters.")
    shown = headline(record)
    figures = (
        [f"{shown['name']}: {shown['value']}; {shown['interval']}."] if shown else ["The run has not ended."]
    )
    used = [f"{name}: {sizes}."] + ([short_notice(record.notice)] if record.notice else [])
    limits = []
    if record.final_split not in ("test", None):
        limits.append(
            f"The headline is of the {record.final_split} split, which training has looked at: it flatters."
        )
    if not record.result.get("members"):
        limits.append("One seed: the interval is over the examples and says nothing of other seeds.")
    if classifier is not None:
        figures += [f"Expected calibration error {classifier.error:.4f}, on {classifier.sample}."]
        limits.append(f"Weakest classes: {', '.join(classifier.worst)}.")
    tried = "tried as corrupted copies only" if record.robustness else "not tried"
    limits.append(f"Inputs unlike the training data were {tried}; nor were groups of people compared.")
    return [
        ("Model", model),
        ("Intended use", [INTENDED_USE]),
        ("Data", used),
        ("Figures", figures),
        ("Limits", limits),
    ]
