"""Predictions: the outputs of the final variables of a run for the examples of a split.

`by_kind` collects them on the devices as a `Kept`, one class for each kind of task; `collect_classes`
and `collect_tokens` do so for classifiers and for text. `reader` reads the file.
`figures` computes further metrics, and checks that the predictions agree with the metrics of the run. Read
`kept` first.
"""

from typing import TYPE_CHECKING

from dl.system.lazy import on_first_use

if TYPE_CHECKING:
    from dl.runs.predictions.by_kind import collect_predictions
    from dl.runs.predictions.collect import OutputsFn, class_names, collect_outputs, outputs_fn
    from dl.runs.predictions.figures import (
        Disagreement,
        add_figures,
        add_to_result,
        check_agreement,
        figures_of,
    )
    from dl.runs.predictions.kept import (
        ClassificationOutcomes,
        Kept,
        MultiLabel,
        Outputs,
        Predictions,
        Reconstruction,
        Regression,
    )
    from dl.runs.predictions.kept_tokens import (
        LanguageModel,
        MaskedLanguageModel,
        SequenceToSequence,
        Tagging,
        Tokens,
    )
    from dl.runs.predictions.reader import read_predictions
else:
    __getattr__, __dir__ = on_first_use(__name__)

__all__ = [
    "ClassificationOutcomes",
    "Disagreement",
    "Kept",
    "LanguageModel",
    "MaskedLanguageModel",
    "MultiLabel",
    "Outputs",
    "OutputsFn",
    "Predictions",
    "Reconstruction",
    "Regression",
    "SequenceToSequence",
    "Tagging",
    "Tokens",
    "add_figures",
    "add_to_result",
    "check_agreement",
    "class_names",
    "collect_outputs",
    "collect_predictions",
    "figures_of",
    "outputs_fn",
    "read_predictions",
]
