"""Figures of classifiers and regressions, and how far they can be trusted."""

from dl.evaluation.calibration import Calibration
from dl.evaluation.classification import Classification
from dl.evaluation.sums import Double, ExactMean

__all__ = ["Calibration", "Classification", "Double", "ExactMean"]
