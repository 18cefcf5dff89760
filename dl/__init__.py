"""A functional JAX codebase for deep-learning research.

An experiment needs little more than these names; everything else is a module away: `dl.task`, `dl.models`,
`dl.optimizers`, `dl.data`.
"""

from typing import TYPE_CHECKING

from dl.system.lazy import on_first_use

if TYPE_CHECKING:
    from dl import data, losses, metrics, models, optimizers, task
    from dl.cli.benchmark import benchmark_main
    from dl.cli.compression_table import compression_main
    from dl.cli.main import main
    from dl.errors import UserError
    from dl.experiment import Experiment
    from dl.inference.exported import load_exported
    from dl.inference.load import load_run
    from dl.option_types import (
        BatchSize,
        DatasetName,
        Fraction,
        ImageSize,
        LabelSmoothing,
        LearningRate,
        NonNegativeFloat,
        NonNegativeInt,
        NumEpochs,
        PositiveFloat,
        PositiveInt,
        Seed,
        WeightDecay,
    )
    from dl.runs.definition import Definition
    from dl.stopping import KeepBest, StopAt
    from dl.training.loop import train
    from dl.training.result import Result
    from dl.warm_start import FromExperiment
else:
    __getattr__, __dir__ = on_first_use(__name__)

__version__ = "0.1.0"

__all__ = [
    "BatchSize",
    "DatasetName",
    "Definition",
    "Experiment",
    "Fraction",
    "FromExperiment",
    "ImageSize",
    "KeepBest",
    "LabelSmoothing",
    "LearningRate",
    "NonNegativeFloat",
    "NonNegativeInt",
    "NumEpochs",
    "PositiveFloat",
    "PositiveInt",
    "Result",
    "Seed",
    "StopAt",
    "UserError",
    "WeightDecay",
    "benchmark_main",
    "compression_main",
    "data",
    "load_exported",
    "load_run",
    "losses",
    "main",
    "metrics",
    "models",
    "optimizers",
    "task",
    "train",
]
