"""The n-gram baseline: against a model of dictionaries by the book, and its rows against the task's."""

import collections
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.baselines import read
from dl import task
from dl.data.source import ArraySource
from dl.data.splits import ArraySplits
from dl.data.text.windows import TokenWindows
from dl.errors import UserError
from dl.evaluation.baselines import KneserNey, NGram
from tests.helpers import REAL_DATA

START = "<s>"


class ByTheBook:
    """Chen & Goodman 1998, equations 22 to 26, with dictionaries and one n-gram at a time."""

    def __init__(self, sequences, vocab_size, order, discount=None):
        self.vocab_size, self.order, self.discount = vocab_size, order, discount
        text = {k: collections.Counter() for k in range(1, order + 1)}
        for sequence in sequences:
            padded = [START] * (order - 1) + list(sequence)
            for end in range(order - 1, len(padded)):
                for k in text:
                    text[k][tuple(padded[end - k + 1 : end + 1])] += 1
        self.counts = {order: text[order]}
        for k in range(1, order):
            preceding = collections.defaultdict(set)
            for gram in text[k + 1]:
                preceding[gram[1:]].add(gram[0])
            self.counts[k] = {
                gram: text[k][gram] if gram[0] == START else len(before) for gram, before in preceding.items()
            }

    def discounts(self, k):
        if self.discount is not None:
            return [self.discount] * 3
        n = collections.Counter(self.counts[k].values())
        if not all(n[r] for r in (1, 2, 3, 4)):
            return [0.5, 1.0, 1.5]
        y = n[1] / (n[1] + 2 * n[2])
        found = [r - (r + 1) * y * n[r + 1] / n[r] for r in (1, 2, 3)]
        return found if all(0 <= d <= r for d, r in zip(found, (1, 2, 3), strict=True)) else [0.5, 1.0, 1.5]

    def probability(self, context, token):
        lower = self.probability(context[1:], token) if context else 1 / self.vocab_size
        counts = self.counts[len(context) + 1]
        following = {gram: c for gram, c in counts.items() if gram[:-1] == context}
        if not following:
            return lower
        d = self.discounts(len(context) + 1)
        total = sum(following.values())
        gamma = sum(d[min(c, 3) - 1] for c in following.values()) / total
        count = following.get((*context, token), 0)
        return (max(count - d[min(count, 3) - 1], 0) if count else 0) / total + gamma * lower

    def losses(self, sequence):
        padded = [START] * (self.order - 1) + list(sequence)
        return [
            -math.log(self.probability(tuple(padded[end - self.order + 1 : end]), padded[end]))
            for end in range(self.order - 1, len(padded))
        ]


def text_of(size, seed, vocab_size=6):
    """Returns tokens each of which depends on the two before it."""
    random = np.random.default_rng(seed)
    table = np.random.default_rng(7).dirichlet(np.full(vocab_size, 0.2), (vocab_size, vocab_size))
    tokens = [0, 1]
    while len(tokens) < size:
        tokens.append(random.choice(vocab_size, p=table[tokens[-2], tokens[-1]]))
    return np.array(tokens)


@pytest.mark.parametrize("discount", [None, 0.75])
@pytest.mark.parametrize("order", [1, 2, 4])
def test_it_equals_a_model_by_the_book(order, discount):
    train = [text_of(220, 0), text_of(90, 1), text_of(3, 2)]
    test = [text_of(40, 3), np.array([5, 5, 5, 5, 0])]
    expected = ByTheBook([s.tolist() for s in train], 7, order, discount)
    model = KneserNey.fit(train, 7, order, discount)
    np.testing.assert_allclose(
        model.losses(test), [x for s in test for x in expected.losses(s.tolist())], rtol=1e-10
    )


def test_a_lower_order_of_a_model_is_the_model_of_that_order():
    train, test = [text_of(300, 0), text_of(50, 1)], [text_of(60, 3)]
    for order in (1, 2, 3):
        alone = KneserNey.fit(train, 6, order)
        np.testing.assert_allclose(KneserNey.fit(train, 6, 5).losses(test, order), alone.losses(test))


@pytest.mark.parametrize("context", [[], [0], [6, 6], [0, 1, 3, 2, 5, 5, 1]])
def test_probabilities_sum_to_one(context):
    model = KneserNey.fit([text_of(300, 0)], 7, 4)
    for order in (1, 2, 3, 4):
        probabilities = model.probabilities(context, order)
        assert probabilities.min() > 0
        assert probabilities.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("stride", [None, 1])
def test_windows_are_one_text_and_the_order_is_chosen_on_validation(stride):
    train, validation, test = text_of(4_001, 0), text_of(2_000, 4), text_of(795, 5)
    splits = {
        "validation": TokenWindows(validation, 40, context=1),
        "test": TokenWindows(test, 40, context=1),
    }
    scores = NGram(max_order=5)(ArraySplits("text", TokenWindows(train, 40, stride=stride), splits))
    assert scores.name == "3-gram model, modified Kneser-Ney"  # two tokens before it decide about a token
    model = KneserNey.fit([train], 6, 3)
    found = scores.examples["test"]["loss"]
    expected = [model.losses([test[start : start + 41]])[1:] for start in range(0, 760, 40)]
    # The last row ends at the end of the text, and counts what no row before it has counted.
    last = model.losses([test[-41:]])[-34:]
    np.testing.assert_allclose(found[:, 0], [*(losses.sum() for losses in expected), last.sum()])
    np.testing.assert_array_equal(found[:, 1], [*[40] * 19, 34])
    assert found[:, 1].sum() == 794


def counts_of(features, **options):
    """Returns the number of tokens of each row that the task counts."""
    from flax import linen as nn

    class Constant(nn.Module):
        @nn.compact
        def __call__(self, tokens, segment_ids=None, positions=None):
            return jnp.zeros((*tokens.shape, 6)) + self.param("bias", nn.initializers.zeros, ())

    learned = task.language_model(Constant(), **options)
    size = len(features["tokens"])
    batch = {name: jnp.asarray(x) for name, x in features.items()} | {"mask": jnp.ones(size, bool)}
    _, aux = learned.loss({"bias": jnp.zeros(())}, {}, batch, None)
    return np.asarray(aux.metrics["loss"].each[1])


TOKENS = np.random.default_rng(0).integers(1, 6, (9, 12), np.int32)
LENGTHS = np.array([12, 5, 7, 2, 12, 9, 3, 11, 6])
IS_PADDING = np.arange(12) >= LENGTHS[:, None]
PADDED = np.where(IS_PADDING, 0, TOKENS)
SEGMENTS = np.where(IS_PADDING, 0, 1 + (np.arange(12) >= 4)).astype(np.int32)
TARGETS = np.where(np.arange(12) % 5 == 2, -1, np.roll(TOKENS, -1, 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("features", "options"),
    [
        ({"tokens": TOKENS}, {}),
        ({"tokens": PADDED}, {"padding_id": 0}),
        ({"tokens": PADDED, "segment_ids": SEGMENTS}, {}),
        ({"tokens": TOKENS, "targets": TARGETS}, {}),
    ],
)
def test_it_counts_the_tokens_that_the_task_counts(features, options):
    source = ArraySource(features)
    data = ArraySplits("rows", source, {"validation": source, "test": source})
    found = NGram(max_order=2, **options)(data).examples["test"]["loss"]
    np.testing.assert_array_equal(found[:, 1], counts_of(features, **options))


def test_segments_are_texts_of_their_own():
    source = ArraySource({"tokens": PADDED, "segment_ids": SEGMENTS})
    found = NGram(max_order=2)(ArraySplits("rows", source, {"validation": source, "test": source}))
    texts = [row[segment == k] for row, segment in zip(PADDED, SEGMENTS, strict=True) for k in (1, 2)]
    model = KneserNey.fit(texts, 6, 2)
    losses = [
        sum(model.losses([texts[2 * n + k]], int(found.name[0] == "b") + 1)[1:].sum() for k in (0, 1))
        for n in range(9)
    ]
    np.testing.assert_allclose(found.examples["test"]["loss"][:, 0], losses)


def test_a_decoder_predicts_the_first_token_too():
    source = ArraySource({"target": PADDED})
    data = ArraySplits("pairs", source, {"test": source})
    how = NGram(max_order=2, input_name="target", padding_id=0, counts_first=True)
    np.testing.assert_array_equal(how(data).examples["test"]["loss"][:, 1], LENGTHS)


def test_without_a_second_split_the_held_out_one_does_not_choose():
    train = TokenWindows(text_of(4_001, 0), 40)
    noise = TokenWindows(np.random.default_rng(0).integers(0, 6, 401), 40, context=1)
    assert NGram(max_order=3)(ArraySplits("fold", train, {"validation": noise})).name.startswith("3-gram")


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: KneserNey.fit([[0, 9]], 6, 2), "the token 9"),
        (lambda: KneserNey.fit([], 6, 2), "at least one token"),
        (lambda: KneserNey.fit([[0, 1]], 6, 2).losses([[0]], 3), "order=3"),
        (lambda: NGram(max_order=0), "max_order"),
    ],
)
def test_mistakes_are_named(act, words):
    with pytest.raises(UserError, match=words):
        act()


@pytest.mark.slow
@pytest.mark.skipif(
    not list(Path(REAL_DATA or "/nowhere").glob("tiny_shakespeare/*/dataset_info.json")),
    reason="TFDS_DATA_DIR does not hold tiny_shakespeare",
)
def test_it_reaches_what_was_measured_on_tiny_shakespeare():
    """A 6-gram model with one discount of 0.75, by another implementation: 1.4755, 1.6017, 1.5386."""
    texts = read("tiny_shakespeare")
    names = sorted(set("".join(one["text"][0] for one in texts.values())))
    tokens = {split: np.array([names.index(name) for name in one["text"][0]]) for split, one in texts.items()}
    parts = [[tokens[split]] for split in ("validation", "test")]
    plain = KneserNey.fit([tokens["train"]], 65, 6, discount=0.75)
    validation, test = map(plain.losses, parts)
    assert validation.mean() == pytest.approx(1.4755, abs=5e-5)
    assert test.mean() == pytest.approx(1.6017, abs=1e-4)
    assert np.concatenate([validation, test]).mean() == pytest.approx(1.5386, abs=5e-5)
    modified = KneserNey.fit([tokens["train"]], 65, 6)
    assert np.concatenate([*map(modified.losses, parts)]).mean() < 1.53
