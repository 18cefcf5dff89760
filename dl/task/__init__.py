"""Tasks: a task defines what is learnt as three pure functions. Builders make tasks from models.

An experiment writes `from dl import task` and `task=task.classification(model)`. The model is a Linen module,
a function that makes an NNX module, or a `Model` of plain functions. Read `contract` first, which defines
`Task`, then `builders`. `model` defines `Model`, and `adapters` converts a module to a `Model`.
"""

from dl.task.adapters import as_model
from dl.task.builders import autoencoder, classification, language_model, multi_label, regression, supervised
from dl.task.contract import FRACTION, Kind, Task, kind_facts
from dl.task.model import AnyModel, Model

__all__ = [
    "FRACTION",
    "AnyModel",
    "Kind",
    "Model",
    "Task",
    "as_model",
    "autoencoder",
    "classification",
    "kind_facts",
    "language_model",
    "multi_label",
    "regression",
    "supervised",
]
