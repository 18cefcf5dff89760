"""BLEU and chrF of translations, by sacreBLEU, with intervals over the sentences.

Both are computed from sums over sentences, so a bootstrap draws sentences and adds up their sums; it does not
compare texts again. The signature of a metric states its version and settings. Quote it with every value.
Sources: Papineni et al. 2002 (BLEU); Popović 2015 (chrF); Post 2018 (sacreBLEU); Koehn 2004 (bootstrap).

Shapes: N sentences, K sums of a sentence, R resamples.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dl.errors import UserError
from dl.evaluation.figure import Figure
from dl.evaluation.intervals import Interval
from dl.evaluation.paired import PairedTest

NUM_RESAMPLES = 1_000


class Scores(NamedTuple):
    """Metrics of generated texts.

    Attributes:
      figures: the metrics by name, with their intervals.
      units: the unit of each metric.
      signatures: for each metric, the version of its library and its settings, as text.
    """

    figures: Mapping[str, Figure]
    units: Mapping[str, str]
    signatures: Mapping[str, str]


def score_translations(
    hypotheses: Sequence[str],
    references: Sequence[str],
    *,
    lowercase: bool = False,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Scores:
    """Returns `bleu` and `chrf` of translations, both from 0 to 100.

    The texts must not be tokenized: sacreBLEU tokenizes them itself (13a for BLEU). The 95 % intervals are
    percentiles of a bootstrap over sentences.

    Args:
      hypotheses: the translation of each sentence, shape N.
      references: the true translation of each sentence, shape N.
      lowercase: whether upper and lower case are the same.
      num_resamples: R, the number of resamples.
      seed: random seed of the resamples.

    Raises:
      UserError: the lengths differ, there are fewer than two sentences, or sacreBLEU is not installed.
    """
    figures, signatures = {}, {}
    method = f"bootstrap, {num_resamples:,} resamples of {len(references):,} sentences"
    for name, metric in _metrics(lowercase).items():
        sums_NK = _sums(metric, hypotheses, references)
        resampled_R = _resampled(metric, sums_NK, num_resamples, seed)
        low, high = np.quantile(resampled_R, (0.025, 0.975)).tolist()
        figures[name] = Figure(_score(metric, sums_NK.sum(0)), low, high, "max", method)
        signatures[name] = f"{metric.get_signature()}"
    return Scores(figures, dict.fromkeys(figures, "0 to 100"), signatures)


def compare_translations(
    hypotheses_a: Sequence[str],
    hypotheses_b: Sequence[str],
    references: Sequence[str],
    *,
    lowercase: bool = False,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, PairedTest]:
    """Returns the differences of `bleu` and `chrf`, a minus b, by a paired bootstrap over sentences.

    Every resample has the same sentences of both sides. The p-value is two-sided: the fraction of resamples
    whose difference is at least as far from the mean of the resamples as the measured one is from 0 (Riezler
    & Maxwell 2005, as sacreBLEU computes it).

    Args:
      hypotheses_a: the translations of system a, shape N.
      hypotheses_b: the translations of system b, shape N.
      references: the true translation of each sentence, shape N.
      lowercase: whether upper and lower case are the same.
      num_resamples: R, the number of resamples.
      seed: random seed of the resamples.

    Raises:
      UserError: the errors of `score_translations`.
    """
    found = {}
    test = f"paired bootstrap, {num_resamples:,} resamples of {len(references):,} sentences"
    for name, metric in _metrics(lowercase).items():
        sides = [_sums(metric, hypotheses, references) for hypotheses in (hypotheses_a, hypotheses_b)]
        difference = _score(metric, sides[0].sum(0)) - _score(metric, sides[1].sum(0))
        a_R, b_R = (_resampled(metric, sums_NK, num_resamples, seed) for sums_NK in sides)
        each_R = a_R - b_R
        low, high = np.quantile(each_R, (0.025, 0.975)).tolist()
        num_as_far = int((np.abs(each_R - each_R.mean()) >= abs(difference)).sum())
        p_value = (num_as_far + 1) / (num_resamples + 1)
        found[name] = PairedTest(test, Interval(difference, low, high), p_value)
    return found


def _metrics(lowercase: bool) -> dict[str, Any]:
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ImportError:
        raise UserError(
            "BLEU and chrF need sacrebleu, which is not installed; run pip install 'dl[text]'"
        ) from None
    # `force` omits a warning about references that are tokenized; it does not change a value.
    return {"bleu": BLEU(lowercase=lowercase, force=True), "chrf": CHRF(lowercase=lowercase)}


def _sums(metric: Any, hypotheses: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Returns the sums of each sentence, shape N × K: matches, n-grams and lengths."""
    if len(hypotheses) != len(references) or len(references) < 2:
        raise UserError(
            f"there are {len(hypotheses)} translations and {len(references)} references; give one of both "
            "for each sentence, and at least two sentences"
        )
    sums_NK = metric._extract_corpus_statistics(list(hypotheses), [list(references)])
    return np.asarray(sums_NK, np.int64)


def _score(metric: Any, sums_K: np.ndarray) -> float:
    return float(metric._compute_score_from_stats(sums_K.tolist()).score)


def _resampled(metric: Any, sums_NK: np.ndarray, num_resamples: int, seed: int) -> np.ndarray:
    """Returns the metric of sentences that are drawn with replacement; the same seed draws the same ones."""
    num = len(sums_NK)
    counts_RN = np.random.default_rng(seed).multinomial(num, np.full(num, 1 / num), num_resamples)
    return np.array([_score(metric, sums_K) for sums_K in counts_RN @ sums_NK])
