"""The baselines of classifiers, translations and masked language models, against small models by the book."""

import collections
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline, make_union
from sklearn.svm import LinearSVC

from dl.data.source import ArraySource
from dl.data.splits import ArraySplits
from dl.errors import UserError
from dl.evaluation.baselines import Neighbours, TfIdf, copy_of_source, fit_lexicon, word_for_word

# Texts and their classifier.

WORDS = ["", "good", "bad", "film", "plot", "not", "very", "the", "a", "it", "was"]
TOKENIZER = types.SimpleNamespace(padding_id=0, decode=lambda tokens: " ".join(WORDS[t] for t in tokens))


def reviews(size, seed):
    """Returns rows of words; the class depends on a word and on whether `not` stands before it."""
    random = np.random.default_rng(seed)
    tokens = np.zeros((size, 9), np.int32)
    label = random.integers(0, 2, size).astype(np.int32)
    for row, is_good in zip(tokens, label, strict=True):
        words = list(random.integers(3, 11, random.integers(4, 8)))
        is_negated = random.random() < 0.5
        words = [word for word in words if word != 5] + [
            5 if is_negated else 8,
            1 if is_good != is_negated else 2,
        ]
        row[: len(words)] = words
    return ArraySource({"tokens": tokens, "segment_ids": np.int32(tokens > 0), "label": label})


class Reviews(ArraySplits):
    tokenizer = TOKENIZER


def texts_of(source):
    rows = source.arrays
    return [" ".join(WORDS[t] for t in row if t) for row in rows["tokens"]], rows["label"]


@pytest.mark.parametrize("has_validation", [True, False])
def test_a_classifier_by_tf_idf_is_the_pipeline_of_scikit_learn(has_validation):
    train, validation, test = reviews(120, 0), reviews(40, 1), reviews(50, 2)
    splits = {"validation": validation, "test": test} if has_validation else {"test": test}
    scores = TfIdf()(Reviews("reviews", train, splits))
    kind, rest = scores.name.split(" on TF-IDF of ")
    features, c = rest.split(", C = ")
    parts = [TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+|[^\w\s]")]
    if features == "words and characters":
        parts.append(TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True))
    model = LinearSVC(C=float(c), random_state=0) if kind == "linear SVM" else LogisticRegression(C=float(c))
    texts, labels = texts_of(test)
    expected = make_pipeline(make_union(*parts), model).fit(*texts_of(train)).predict(texts) == labels
    np.testing.assert_array_equal(scores.examples["test"]["accuracy"], np.stack([expected, np.ones(50)], -1))
    assert expected.mean() > 0.9  # pairs of words know what `not good` is


def test_the_log_loss_of_a_logistic_regression_is_returned():
    from dl.evaluation.baselines.tf_idf import TextClassifier

    texts, labels = texts_of(reviews(60, 0))
    vectorizer = TfidfVectorizer().fit(texts)
    model = LogisticRegression().fit(vectorizer.transform(texts), labels)
    found = TextClassifier("", vectorizer, model).score(texts, labels)["loss"]
    log_p = model.predict_log_proba(vectorizer.transform(texts))
    np.testing.assert_allclose(found[:, 0], -log_p[np.arange(60), labels])


def test_data_that_tf_idf_cannot_read_are_refused():
    with pytest.raises(UserError, match="no tokenizer"):
        TfIdf()(ArraySplits("reviews", reviews(20, 0), {"test": reviews(20, 1)}))
    one_class = ArraySource({"tokens": np.ones((9, 3), np.int32), "label": np.zeros(9, np.int32)})
    with pytest.raises(UserError, match="fewer than two classes"):
        TfIdf()(Reviews("reviews", one_class, {"test": one_class}))


# Translations.

ENGLISH = ["the house", "the small house", "a house", "the book", "a small book", "the cat sleeps"]
GERMAN = ["das Haus", "das kleine Haus", "ein Haus", "das Buch", "ein kleines Buch", "die Katze schläft"]


def by_the_book(pairs, num_iterations):
    """Returns t(f | e) of IBM model 1 by dictionaries, as in Brown et al. 1993 and Koehn 2010, figure 4.3."""
    pairs = [(["", *e.split()], f.split()) for e, f in pairs]
    t = {(e, f): 1.0 for source, target in pairs for e in source for f in target}
    for _ in range(num_iterations):
        count, total = collections.Counter(), collections.Counter()
        for source, target in pairs:
            for f in target:
                norm = sum(t[e, f] for e in source)
                for e in source:
                    count[e, f] += t[e, f] / norm
                    total[e] += t[e, f] / norm
        t = {(e, f): count[e, f] / total[e] for e, f in t}
    return t


@pytest.mark.parametrize("num_iterations", [1, 5])
def test_the_lexicon_is_that_of_ibm_model_1(num_iterations):
    sources, targets = ([text.split() for text in texts] for texts in (ENGLISH, GERMAN))
    found = fit_lexicon(sources, targets, num_iterations).probability
    expected = by_the_book(zip(ENGLISH, GERMAN, strict=True), num_iterations)
    assert found.keys() == expected.keys()
    for pair, value in expected.items():
        assert found[pair] == pytest.approx(value, rel=1e-10)
    for source in {e for e, _ in found}:
        assert sum(value for (e, _), value in found.items() if e == source) == pytest.approx(1)


def test_words_are_translated_in_their_order_and_unknown_ones_stay():
    train = [[text[0].upper() + text[1:] + "." for text in texts] for texts in (ENGLISH, GERMAN)]
    train = [[*train[0], "Eve sees the house."], [*train[1], "Eva sieht das Haus."]]
    found = word_for_word(*train, ["The book.", "the house, Peter."])
    assert found == ["Das Buch.", "das Haus, Peter."]
    assert copy_of_source(("The book.",)) == ["The book."]
    with pytest.raises(UserError, match="2 source sentences and 1 target"):
        fit_lexicon([["a"], ["b"]], [["c"]])


# Masked tokens.

MASK, VOCAB = 1, 8


def corrupt(key, example):
    """Masks a fifth of the tokens; a fifth of them is shown as it is, or as another token."""
    tokens = example["tokens"]
    where, how, other = jax.random.uniform(key, (3, *tokens.shape))  # one draw compiles faster than three
    is_chosen = (where < 0.2) & (example["segment_ids"] > 0)
    changed = jnp.where(how < 0.8, MASK, tokens)
    changed = jnp.where(how > 0.9, 2 + jnp.int32(other * (VOCAB - 2)), changed)
    return {
        **example,
        "tokens": jnp.where(is_chosen, changed, tokens),
        "targets": jnp.where(is_chosen, tokens, -1),
    }


def chains(size, seed):
    random = np.random.default_rng(seed)
    table = np.random.default_rng(3).dirichlet(np.full(VOCAB - 2, 0.3), VOCAB)
    tokens = np.full((size, 20), 2, np.int32)
    for t in range(1, 20):
        tokens[:, t] = [2 + random.choice(VOCAB - 2, p=table[last]) for last in tokens[:, t - 1]]
    segment_ids = np.int32(np.arange(20) < random.integers(8, 21, (size, 1)))
    return ArraySource({"tokens": np.where(segment_ids, tokens, 0), "segment_ids": segment_ids})


class Chains(ArraySplits):
    vocab_size = VOCAB


TRAIN, TEST = chains(150, 0), chains(40, 2)
DATA = Chains("chains", TRAIN, {"validation": chains(40, 1), "test": TEST})


def expected_of(of_left, of_right, strength):
    """Returns loss and number of right tokens of each test row, one masked token at a time."""
    rows, masks = TRAIN.arrays["tokens"], TRAIN.arrays["segment_ids"]
    unigram = np.ones(VOCAB)
    after, before = np.zeros((2, VOCAB, VOCAB))
    between = np.zeros((VOCAB, VOCAB, VOCAB))
    for row, is_text in zip(rows, masks, strict=True):
        words = row[is_text > 0]
        np.add.at(unigram, words, 1)
        np.add.at(after, (words[:-1], words[1:]), 1)
        np.add.at(before, (words[1:], words[:-1]), 1)
        np.add.at(between, (words[:-2], words[2:], words[1:-1]), 1)
    unigram /= unigram.sum()
    masked = jax.jit(lambda index, example: corrupt(jax.random.fold_in(jax.random.key(0), index), example))
    found = []
    for index in range(len(TEST)):
        example = {name: x[index] for name, x in TEST.arrays.items()}
        changed = {name: np.asarray(x) for name, x in masked(index, example).items()}
        loss, right, count = 0.0, 0, 0
        for place in np.flatnonzero(changed["targets"] >= 0):
            target, total, known = changed["targets"][place], 1 - of_left - of_right, []
            p = total * unigram
            for weight, table, other in ((of_left, after, place - 1), (of_right, before, place + 1)):
                is_inside = 0 <= other < 20 and changed["segment_ids"][other]
                token = changed["tokens"][other] if is_inside else MASK
                known += [token] if token != MASK else []
                if token != MASK and table[token].sum():
                    p = p + weight * table[token] / table[token].sum()
                    total += weight
            p = p / total
            if len(known) == 2 and np.isfinite(strength):
                counts = between[tuple(known)]
                p = (counts + strength * p) / (counts.sum() + strength)
            shown = changed["tokens"][place]
            if shown != MASK:
                p = 0.5 * p + 0.5 * (np.arange(VOCAB) == shown)
            loss, right, count = loss - np.log(p[target]), right + (p.argmax() == target), count + 1
        found.append((loss, right, count))
    return np.array(found)


def test_masked_tokens_are_predicted_from_both_neighbours():
    scores = Neighbours(corrupt, MASK)(DATA)
    settings = [float(word) for word in re.findall(r"[0-9.]+|inf", scores.name)]
    expected = expected_of(*settings)
    assert np.isfinite(settings[2])
    found = scores.examples["test"]
    np.testing.assert_allclose(found["loss"], expected[:, [0, 2]], rtol=1e-9)
    np.testing.assert_array_equal(found["accuracy"], expected[:, [1, 2]])
    unigram = Neighbours(corrupt, MASK, uses_neighbours=False)(DATA).examples["test"]
    np.testing.assert_allclose(unigram["loss"], expected_of(0, 0, np.inf)[:, [0, 2]], rtol=1e-9)
    for metric, sign in (("loss", 1), ("accuracy", -1)):
        assert sign * found[metric][:, 0].sum() < sign * unigram[metric][:, 0].sum()
