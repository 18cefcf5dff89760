"""Baselines: cheap methods that a network must beat, on the same splits and rows.

An experiment states one as `Experiment.baseline`; `types.Baseline` defines what it returns. `NGram` is for
language models, `Neighbours` for masked language models, `TfIdf` for the classification of texts, and
`Classical` for images, texts and tables.
`word_for_word` and `copy_of_source` translate; their texts are scored as those of a network. Read `ngram`
first, whose model is in `kneser_ney`.
"""

from dl.evaluation.baselines.classical import Classical
from dl.evaluation.baselines.kneser_ney import KneserNey
from dl.evaluation.baselines.lexicon import copy_of_source, fit_lexicon, word_for_word
from dl.evaluation.baselines.neighbours import Neighbours
from dl.evaluation.baselines.ngram import NGram
from dl.evaluation.baselines.tf_idf import TfIdf, fit_tf_idf

__all__ = [
    "Classical",
    "KneserNey",
    "NGram",
    "Neighbours",
    "TfIdf",
    "copy_of_source",
    "fit_lexicon",
    "fit_tf_idf",
    "word_for_word",
]
