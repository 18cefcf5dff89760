"""Baselines of translation: word for word by the lexicon of IBM model 1, and the source as it is.

IBM model 1 supposes that each word of a target sentence translates one word of the source sentence, or none
(NULL), each with the same probability. Its parameters t(f | e), the probability of the target word f for the
source word e, maximise the likelihood of the pairs, by expectation maximisation: the expected count of (e, f)
adds t(f | e) / Σ_e' t(f | e') over the words e' of the sentence, for each f of each pair. (Brown et al. 1993,
The mathematics of statistical machine translation, section 4.)

Shapes: P pairs of a source word and a target word that stand in the same pair of sentences, D different ones.
"""

import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from dl.errors import UserError

NULL = ""
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclasses.dataclass(frozen=True)
class Lexicon:
    """The most probable translation of each word.

    Attributes:
      probability: t(f | e) by (e, f), for the pairs that stand in the same sentences. The source word of NULL
        is the empty text.
    """

    probability: Mapping[tuple[str, str], float]

    def best(self) -> dict[str, str]:
        """Returns the most probable target word of each source word."""
        found: dict[str, tuple[float, str]] = {}
        for (source, target), value in self.probability.items():
            found[source] = max(found.get(source, (0.0, "")), (value, target))
        return {source: target for source, (_, target) in found.items()}


def fit_lexicon(
    sources: Sequence[Sequence[str]], targets: Sequence[Sequence[str]], num_iterations: int = 10
) -> Lexicon:
    """Fits IBM model 1 to pairs of sentences.

    Args:
      sources: the words of each source sentence.
      targets: the words of each target sentence.
      num_iterations: number of iterations of expectation maximisation, which begins with equal t(f | e).

    Raises:
      UserError: the numbers of sentences differ, or there are no words.
    """
    if len(sources) != len(targets) or not any(map(len, targets)):
        raise UserError(
            f"there are {len(sources)} source sentences and {len(targets)} target sentences; give pairs with "
            "at least one word"
        )
    source_id, source_names = _numbered([NULL, *(word for words in sources for word in words)])
    target_id, target_names = _numbered([word for words in targets for word in words])
    source_parts, target_parts, place_parts = [], [], []
    place = 0
    for source, target in zip(sources, targets, strict=True):
        e = np.array([source_id[word] for word in (NULL, *source)])
        f = np.array([target_id[word] for word in target], np.int64)
        source_parts.append(np.tile(e, len(f)))
        target_parts.append(np.repeat(f, len(e)))
        place_parts.append(np.repeat(np.arange(place, place + len(f)), len(e)))
        place += len(f)
    source_P, target_P, place_P = map(np.concatenate, (source_parts, target_parts, place_parts))
    pair_D, pair_P = np.unique(source_P * len(target_names) + target_P, return_inverse=True)
    source_D = pair_D // len(target_names)
    t_D = np.ones(len(pair_D))
    for _ in range(num_iterations):
        t_P = t_D[pair_P]
        share_P = t_P / np.bincount(place_P, t_P)[place_P]
        count_D = np.bincount(pair_P, share_P, len(pair_D))
        t_D = count_D / np.bincount(source_D, count_D)[source_D]
    names = zip(source_D.tolist(), (pair_D % len(target_names)).tolist(), t_D.tolist(), strict=True)
    return Lexicon({(source_names[e], target_names[f]): t for e, f, t in names})


def word_for_word(
    train_sources: Sequence[str], train_targets: Sequence[str], sources: Iterable[str]
) -> list[str]:
    """Returns each source with every word replaced by its most probable translation, in the same order.

    Source words are compared in lower case. The first word of a target sentence counts in the form that it
    has most often inside of sentences, because its case says nothing. A word that the training pairs do not
    have stays as it is. The first letter of a sentence keeps its case, and there is no space before a full
    stop or a comma.

    Args:
      train_sources: source sentences, from which the lexicon is fitted.
      train_targets: their translations.
      sources: sentences to translate.
    """
    lower = [words_of(text.lower()) for text in train_sources]
    best = fit_lexicon(lower, _true_case([words_of(text) for text in train_targets])).best()
    found = []
    for text in sources:
        translated = " ".join(best.get(word.lower(), word) for word in words_of(text))
        joined = re.sub(r" ([.,;:!?])", r"\1", translated)
        found.append(joined[:1].upper() + joined[1:] if text[:1].isupper() else joined)
    return found


def copy_of_source(sources: Iterable[str]) -> list[str]:
    """Returns the sources as they are: names, numbers and punctuation of a translation are right in them."""
    return list(sources)


def words_of(text: str) -> list[str]:
    """Returns the words and the punctuation marks of a text."""
    return _WORD.findall(text)


def _true_case(sentences: Sequence[Sequence[str]]) -> list[list[str]]:
    """Returns the sentences with the first word in its most frequent form inside of sentences."""
    forms: dict[str, Counter[str]] = defaultdict(Counter)
    for words in sentences:
        for word in words[1:]:
            forms[word.lower()][word] += 1
    usual = {lower: counts.most_common(1)[0][0] for lower, counts in forms.items()}
    return [[*(usual.get(word.lower(), word) for word in words[:1]), *words[1:]] for words in sentences]


def _numbered(words: Iterable[str]) -> tuple[dict[str, int], list[str]]:
    names = list(dict.fromkeys(words))
    return {name: number for number, name in enumerate(names)}, names
