"""Figures of classifiers and regressions, and how far they can be trusted.

Sums on the device (`Classification`, `Calibration`, `Regression`) add up over batches and devices; functions
turn them into figures. `intervals` has confidence intervals and tests.
"""

from dl.evaluation.calibration import Calibration
from dl.evaluation.classification import Classification
from dl.evaluation.figures import classification_figures
from dl.evaluation.ranking import average_precision, one_vs_rest, roc_auc
from dl.evaluation.regression import Regression
from dl.evaluation.sums import Double, ExactMean

__all__ = [
    "Calibration",
    "Classification",
    "Double",
    "ExactMean",
    "Regression",
    "average_precision",
    "classification_figures",
    "one_vs_rest",
    "roc_auc",
]
