"""The quality of a translation model: BLEU and chrF of what it writes, beside a word-for-word translation."""

import time
from typing import NamedTuple

from dl.errors import UserError
from dl.evaluation.baselines import word_for_word
from dl.evaluation.translation import Scores, compare_translations, score_translations
from dl.runs.scores import ScoredBaseline
from dl.training.result import Result

LEXICON = "word-for-word translation, IBM model 1"


class ScoredTranslations(NamedTuple):
    """The translations of a split and their scores.

    Attributes:
      sources: the texts that were translated.
      references: their true translations.
      translations: the translations of the model.
      scores: `bleu` and `chrf` of the translations.
      baseline: the same of word-for-word translations, and the differences with their paired intervals.
    """

    sources: list[str]
    references: list[str]
    translations: list[str]
    scores: Scores
    baseline: ScoredBaseline


def score_translation(
    run: Result, split: str = "test", *, num_beams: int = 5, length_penalty: float = 1.0
) -> ScoredTranslations:
    """Translates a split by beam search, and scores it beside a word-for-word translation.

    The baseline has its lexicon from the training split. Nothing is written; see `runs.scores.add_scores`.

    Args:
      run: the result of training a sequence-to-sequence model on `dl.data.translation`.
      split: name of the split.
      num_beams: number of beams; 1 always chooses the most probable token.
      length_penalty: exponent of the length of a translation in its score in the beam search.

    Raises:
      UserError: the data have no texts, or not this split, or sacreBLEU is not installed.
    """
    data = run.experiment.data
    if split not in data.evaluations:
        raise UserError(f"the data have no split {split}; they have {', '.join(data.evaluations)}")
    spec = data.evaluations[split].spec
    pairs, train = (getattr(source, "texts", {}) for source in (data.evaluations[split], data.train))
    if not {"source", "target"} <= pairs.keys() & train.keys():
        raise UserError(
            f"{data.identity.name} has no sources and translations as texts; only a model that was trained "
            "on dl.data.translation can be scored"
        )
    sources, references = list(pairs["source"]), list(pairs["target"])
    beams = {"num_beams": num_beams, "length_penalty": length_penalty}
    how = {"temperature": 0.0} if num_beams == 1 else beams
    room = spec["source"].shape[0] - 1  # and the end token
    written = run.generate(
        [_cut(run, text, room) for text in sources], max_tokens=spec["target"].shape[0], **how
    )
    translations = [one.text for one in written]
    start = time.perf_counter()
    words = word_for_word(train["source"], train["target"], sources)
    seconds = time.perf_counter() - start
    differences = compare_translations(translations, words, references)
    baseline = ScoredBaseline(LEXICON, seconds, score_translations(words, references), differences)
    scores = score_translations(translations, references)
    return ScoredTranslations(sources, references, translations, scores, baseline)


def _cut(run: Result, text: str, room: int) -> str:
    """Returns a text without the tokens that the model has no room for, as in training."""
    tokenizer = run.experiment.data.tokenizer  # type: ignore[attr-defined]
    tokens = tokenizer.encode(text)
    # A cut within a character decodes to another one, which may have more tokens.
    for size in range(room, 0, -1):
        if len(tokenizer.encode(text)) <= room:
            break
        text = tokenizer.decode(tokens[:size])
    return text
