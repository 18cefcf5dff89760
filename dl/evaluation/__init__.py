"""Evaluation: metrics of predictions, with confidence intervals and tests.

Sums over batches are computed on the device; intervals and tests are computed on the host. `baselines` holds
cheap methods that a network must beat. This room may import `dl.system` and the modules at the top of `dl`.
Read `intervals` first.
"""

from typing import TYPE_CHECKING

from dl.system.lazy import on_first_use

if TYPE_CHECKING:
    from dl.evaluation.calibration import Calibration
    from dl.evaluation.classification import Classification
    from dl.evaluation.figures import classification_figures
    from dl.evaluation.ranking import average_precision, one_vs_rest, roc_auc
    from dl.evaluation.regression import Regression
    from dl.evaluation.sums import Double, ExactMean
else:
    __getattr__, __dir__ = on_first_use(__name__)

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
