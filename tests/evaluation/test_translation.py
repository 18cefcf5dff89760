"""BLEU, chrF and ROUGE: against the libraries' own commands, and intervals over sentences."""

import sys

import numpy as np
import pytest

from dl.errors import UserError
from dl.evaluation.summaries import rouge_of_examples, score_summaries
from dl.evaluation.translation import compare_translations, score_translations

pytest.importorskip("sacrebleu")
WORDS = [*"abcdefghij", "man", "red", "coat", "guitar", "street", "dogs", "."]


def corpus(size, error, seed=0):
    """Returns references, and hypotheses in which a part of the words is wrong."""
    random = np.random.default_rng(seed)
    references = [list(random.choice(WORDS, random.integers(6, 14))) for _ in range(size)]
    wrong = np.random.default_rng(seed + 1)
    hypotheses = [
        [wrong.choice(WORDS) if wrong.random() < error else word for word in words] for words in references
    ]
    return [" ".join(words) for words in references], [" ".join(words) for words in hypotheses]


REFERENCES, HYPOTHESES = corpus(120, 0.3)
_, WORSE = corpus(120, 0.5)


def test_values_are_those_of_sacrebleu():
    import sacrebleu

    scores = score_translations(HYPOTHESES, REFERENCES, num_resamples=100)
    assert scores.figures["bleu"].value == pytest.approx(
        sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES], force=True).score
    )
    assert scores.figures["chrf"].value == pytest.approx(
        sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES]).score
    )
    assert scores.signatures["bleu"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert scores.signatures["chrf"].startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0|")


def test_a_perfect_translation_has_100():
    scores = score_translations(REFERENCES, REFERENCES, num_resamples=20)
    assert [*map(round, scores.figures["bleu"][:3])] == [100, 100, 100]
    assert scores.figures["bleu"].better == "max"
    lower = [line.upper() for line in REFERENCES]
    assert score_translations(lower, REFERENCES, num_resamples=20).figures["bleu"].value < 50
    found = score_translations(lower, REFERENCES, lowercase=True, num_resamples=20)
    assert found.figures["bleu"].value == pytest.approx(100)


def test_the_interval_is_as_wide_as_that_of_sacrebleu():
    from sacrebleu.metrics import BLEU

    theirs = BLEU(force=True).corpus_score(HYPOTHESES, [REFERENCES], n_bootstrap=1_000)
    ours = score_translations(HYPOTHESES, REFERENCES).figures["bleu"]
    assert (ours.high - ours.low) / 2 == pytest.approx(theirs._ci, rel=0.1)
    assert ours.low < ours.value < ours.high
    assert score_translations(HYPOTHESES, REFERENCES).figures["bleu"] == ours


def test_two_systems_are_compared_on_the_same_sentences():
    found = compare_translations(HYPOTHESES, WORSE, REFERENCES)
    for name in ("bleu", "chrf"):
        a, b = (score_translations(x, REFERENCES).figures[name].value for x in (HYPOTHESES, WORSE))
        test, (estimate, low, high), p_value = found[name]
        assert estimate == pytest.approx(a - b)
        assert 0 < low < estimate < high
        assert p_value == pytest.approx(1 / 1_001)
        assert test == "paired bootstrap, 1,000 resamples of 120 sentences"
    equal = compare_translations(HYPOTHESES, HYPOTHESES, REFERENCES, num_resamples=50)["bleu"]
    assert (*equal.interval, equal.p_value) == (0, 0, 0, 1)


def test_rouge_counts_words_pairs_and_the_longest_common_subsequence():
    summary, reference = "the cat sat on a mat", "the dog sat on the mat"
    found = rouge_of_examples([summary], [reference], use_stemmer=False)
    # Common words: the, sat, on, mat, in this order. Common pairs: sat on.
    assert found["rouge_1"][0] == pytest.approx(4 / 6)
    assert found["rouge_2"][0] == pytest.approx(1 / 5)
    assert found["rouge_l"][0] == pytest.approx(4 / 6)
    assert rouge_of_examples(["runs"], ["running"])["rouge_1"][0] == 1
    scores = score_summaries([summary, reference], [reference, reference])
    assert scores.figures["rouge_1"].value == pytest.approx((4 / 6 + 1) / 2)
    assert scores.signatures["rouge_l"].endswith("|F1|mean over examples|stemmer:yes")


@pytest.mark.parametrize(
    ("score", "package"), [(score_translations, "sacrebleu"), (score_summaries, "rouge-score")]
)
def test_mistakes_are_named(score, package, monkeypatch):
    with pytest.raises(UserError, match="there are 1 "):
        score(["a"], ["a", "b"])
    for module in ("sacrebleu.metrics.bleu", "rouge_score"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=f"need.* {package}, .*pip install"):
        score(["a", "b"], ["a", "b"])
