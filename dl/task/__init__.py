"""Tasks: a task defines what is learnt as three pure functions. Builders make tasks from models.

An experiment writes `from dl import task` and `task=task.classification(model)`. The model is a Linen module,
a function that makes an NNX module, or a `Model` of plain functions. Read `contract` first, which defines
`Task`, then `builders` and `language`. `model` defines `Model`; `adapters` converts a module to a `Model`.
"""

from typing import TYPE_CHECKING

from dl.system.lazy import on_first_use

if TYPE_CHECKING:
    from dl.task.adapters import as_model
    from dl.task.builders import autoencoder, classification, corrupted, multi_label, regression, supervised
    from dl.task.contract import FRACTION, Kind, Task, kind_facts
    from dl.task.decoder import Decoder
    from dl.task.language import (
        following_tokens,
        language_model,
        masked_language_model,
        sequence_targets,
        sequence_to_sequence,
        tagging,
    )
    from dl.task.model import AnyModel, Model
else:
    __getattr__, __dir__ = on_first_use(__name__)

__all__ = [
    "FRACTION",
    "AnyModel",
    "Decoder",
    "Kind",
    "Model",
    "Task",
    "as_model",
    "autoencoder",
    "classification",
    "corrupted",
    "following_tokens",
    "kind_facts",
    "language_model",
    "masked_language_model",
    "multi_label",
    "regression",
    "sequence_targets",
    "sequence_to_sequence",
    "supervised",
    "tagging",
]
