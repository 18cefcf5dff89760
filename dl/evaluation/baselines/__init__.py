"""Baselines: cheap methods that a network must beat, on the same splits and rows.

An experiment states one as `Experiment.baseline`; `types.Baseline` defines what it returns. Read `ngram`
first, whose model is in `kneser_ney`.
"""

from dl.evaluation.baselines.kneser_ney import KneserNey
from dl.evaluation.baselines.ngram import NGram

__all__ = ["KneserNey", "NGram"]
