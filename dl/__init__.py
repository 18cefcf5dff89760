"""A functional JAX codebase for deep-learning research.

An experiment needs little more than these names; everything else is a module away: `dl.models`,
`dl.losses`, `dl.optimizers`, `dl.data`.
"""

from dl.cli.main import main
from dl.errors import UserError
from dl.experiment import Experiment
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
from dl.stopping import KeepBest, StopAt

__version__ = "0.1.0"

__all__ = [
    "BatchSize",
    "DatasetName",
    "Experiment",
    "Fraction",
    "ImageSize",
    "KeepBest",
    "LabelSmoothing",
    "LearningRate",
    "NonNegativeFloat",
    "NonNegativeInt",
    "NumEpochs",
    "PositiveFloat",
    "PositiveInt",
    "Seed",
    "StopAt",
    "UserError",
    "WeightDecay",
    "main",
]
