"""ROUGE of summaries, by Google's rouge-score, with intervals over the examples. Source: Lin 2004.

Shapes: N examples.
"""

from collections.abc import Sequence
from importlib.metadata import version

import numpy as np

from dl.errors import UserError
from dl.evaluation.figure import Figure, no_interval
from dl.evaluation.spread import Spread
from dl.evaluation.translation import Scores

_KINDS = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}


def rouge_of_examples(
    summaries: Sequence[str], references: Sequence[str], *, use_stemmer: bool = True
) -> dict[str, np.ndarray]:
    """Returns the F1 of each example: `rouge_1`, `rouge_2` and `rouge_l`, in [0, 1], each of shape N.

    They count the words, the pairs of words, and the longest common subsequence of words that the summary
    shares with the reference. `evaluation.paired.paired_ratio` compares two systems by them.

    Args:
      summaries: the generated summaries, shape N.
      references: the true summaries, shape N.
      use_stemmer: whether words are compared by their stems (Porter's, for English), as most papers do.

    Raises:
      UserError: the lengths differ, there are no examples, or rouge-score is not installed.
    """
    try:
        from rouge_score import rouge_scorer
    except ImportError:
        raise UserError(
            "ROUGE needs rouge-score, which is not installed; run pip install 'dl[text]'"
        ) from None
    if len(summaries) != len(references) or not len(references):
        raise UserError(
            f"there are {len(summaries)} summaries and {len(references)} references; give one of both for "
            "each example"
        )
    scorer = rouge_scorer.RougeScorer(list(_KINDS.values()), use_stemmer=use_stemmer)
    pairs = zip(summaries, references, strict=True)
    found = [scorer.score(reference, summary) for summary, reference in pairs]
    return {name: np.array([one[kind].fmeasure for one in found]) for name, kind in _KINDS.items()}


def score_summaries(
    summaries: Sequence[str], references: Sequence[str], *, use_stemmer: bool = True
) -> Scores:
    """Returns the mean of each metric of `rouge_of_examples`, with Student's interval over the examples.

    The arguments and errors are those of `rouge_of_examples`.
    """
    figures = {}
    for name, values_N in rouge_of_examples(summaries, references, use_stemmer=use_stemmer).items():
        interval = Spread.of(values_N, np.ones(len(values_N))).interval()
        figures[name] = no_interval(float(values_N.mean()), "max")
        if interval is not None:
            (value, low, high), method = interval
            figures[name] = Figure(value, low, high, "max", method)
    stemmer = "yes" if use_stemmer else "no"
    signature = f"rouge-score:{version('rouge-score')}|F1|mean over examples|stemmer:{stemmer}"
    return Scores(figures, dict.fromkeys(figures, "F1"), dict.fromkeys(figures, signature))
