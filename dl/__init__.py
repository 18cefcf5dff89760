"""A functional JAX codebase for deep-learning research.

An experiment needs little more than these names; everything else is a module away: `dl.task`, `dl.models`,
`dl.optimizers`, `dl.data`.
"""

from dl.cli.main import main
from dl.errors import UserError
from dl.experiment import Experiment
from dl.option_types import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Seed
from dl.stopping import KeepBest, StopAt

__version__ = "0.1.0"

__all__ = [
    "Experiment",
    "Fraction",
    "KeepBest",
    "NonNegativeFloat",
    "NonNegativeInt",
    "PositiveFloat",
    "PositiveInt",
    "Seed",
    "StopAt",
    "UserError",
    "main",
]
