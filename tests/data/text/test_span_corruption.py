from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dl.data.text.span_corruption import corrupt_spans
from dl.data.text.tokenizer import ByteTokenizer, CharacterTokenizer
from dl.errors import UserError

TOKENIZER = CharacterTokenizer("".join(map(chr, range(97, 97 + 200))), ("padding", "end"))
LENGTH, ROWS = 40, 300


def reference_lengths(tokens_length, noise_density, mean_noise_span_length):
    """Returns the lengths that T5's code states for a number of tokens (Raffel et al. 2020), with the end."""
    num_noise = round(tokens_length * noise_density)
    num_spans = round(num_noise / mean_noise_span_length)
    return tokens_length - num_noise + num_spans + 1, num_noise + num_spans + 1


def restored(source, target, first_sentinel, num_spans):
    """Returns the tokens of a source whose sentinels are replaced by what the target has after them."""
    sentinels = [first_sentinel - k for k in range(num_spans)]
    spans = {}
    for token in target:
        if token in sentinels:
            spans[token] = current = []
        else:
            current.append(token)
    assert list(spans) == sentinels == [token for token in source if token in sentinels]
    assert all(spans.values())
    return [t for token in source for t in spans.get(token, [token])], [len(span) for span in spans.values()]


corrupt = jax.jit(jax.vmap(corrupt_spans(TOKENIZER)))


@pytest.fixture(scope="module")
def corrupted():
    """Returns rows of different lengths, and their sources and targets."""
    random = np.random.default_rng(0)
    tokens = random.integers(0, 200, (ROWS, LENGTH)).astype(np.int32)
    size = random.integers(0, LENGTH + 1, ROWS)
    size[:100] = LENGTH
    is_token = np.arange(LENGTH) < size[:, None]
    batch = {
        "tokens": jnp.asarray(np.where(is_token, tokens, 5)),  # padding that only the segment shows
        "segment_ids": jnp.asarray(is_token, jnp.int32),
        "targets": jnp.asarray(tokens),
        "label": jnp.arange(ROWS),
    }
    result = corrupt(keys(0), batch)
    return batch, size, jax.tree.map(np.asarray, result)


def keys(seed, rows=ROWS):
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(rows))


@pytest.mark.slow
def test_the_target_restores_the_source_at_the_exact_density(corrupted):
    batch, size, result = corrupted
    stated = corrupt_spans(TOKENIZER)
    assert set(result) == {"source", "target", "label"}
    for row, n in enumerate(size):
        lengths = reference_lengths(n, 0.15, 3) if n > 9 else stated.lengths(n)
        parts = []
        for name, length in zip(("source", "target"), lengths, strict=True):
            padded = result[name][row]
            assert (padded[length:] == TOKENIZER.padding_id).all()
            assert padded[length - 1] == TOKENIZER.end_id
            parts.append(padded[: length - 1].tolist())
        num_spans = lengths[1] - 1 - max(round(n * 0.15), int(n > 1))
        tokens, spans = restored(*parts, stated.first_sentinel, num_spans)
        assert tokens == np.asarray(batch["tokens"])[row, :n].tolist()
        assert sum(spans) == (max(round(n * 0.15), 1) if n > 1 else 0)


def test_the_shapes_are_those_of_t5():
    corrupt = corrupt_spans(TOKENIZER)
    assert corrupt.lengths(568) == (512, 114)  # the numbers that T5 was pretrained with
    for rate, mean_length in ((0.15, 3), (0.5, 3), (0.5, 8)):
        corrupt = corrupt_spans(TOKENIZER, rate, mean_length)
        for n in range(20, 600):
            assert corrupt.lengths(n) == reference_lengths(n, rate, mean_length)


@pytest.mark.slow
def test_every_place_is_equally_likely_to_be_replaced():
    tokens = jnp.arange(12)
    corrupt = jax.jit(jax.vmap(corrupt_spans(TOKENIZER, 0.25, 3), (0, None)))
    source = np.asarray(corrupt(keys(0, 2000), {"tokens": tokens})["source"])
    start = (source[:, :10] > 200).argmax(1)  # one span of three tokens, after 0 to 9 others
    assert stats.chisquare(np.bincount(start, minlength=10)).pvalue > 1e-4


@pytest.mark.slow
def test_the_lengths_of_spans_are_random_with_the_stated_mean():
    corrupt = jax.jit(jax.vmap(corrupt_spans(TOKENIZER, 0.5, 2.5), (0, None)))
    target = np.asarray(corrupt(keys(0, 400), {"tokens": jnp.arange(20)})["target"])
    # 10 tokens in 4 spans: all 84 ways to cut are equally likely, so 28 of them have a first span of 1
    first = (target[:, 1:] > 200).argmax(1)
    assert stats.binomtest(int((first == 1).sum()), 400, 28 / 84).pvalue > 1e-4


def test_an_example_is_corrupted_alike_in_every_batch(corrupted):
    batch, _, result = corrupted
    order = np.random.default_rng(1).integers(0, ROWS, ROWS)
    mixed = corrupt(keys(0)[order], jax.tree.map(lambda values: values[order], batch))
    jax.tree.map(np.testing.assert_array_equal, mixed, {name: v[order] for name, v in result.items()})


@pytest.mark.slow
def test_rows_without_padding_need_no_special_token():
    corrupt = corrupt_spans(ByteTokenizer(), num_sentinels=10)
    assert corrupt.vocab_size == 266
    result = jax.jit(corrupt)(jax.random.key(0), {"tokens": jnp.arange(40), "targets": jnp.arange(40)})
    tokens, _ = restored(result["source"].tolist(), result["target"].tolist(), 265, 2)
    assert tokens == list(range(40))


def test_published_sentinels_are_used_where_a_vocabulary_has_them():
    class T5(ByteTokenizer):
        token_names = (*map(str, range(256)), *(f"<extra_id_{k}>" for k in reversed(range(4))))

    corrupt = corrupt_spans(T5())
    assert (corrupt.first_sentinel, corrupt.num_sentinels, corrupt.vocab_size) == (259, 4, 260)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: corrupt_spans(TOKENIZER, 0), "rate=0"),
        (lambda: corrupt_spans(TOKENIZER, mean_length=0.5), "mean_length=0.5"),
        (
            lambda: corrupt_spans(TOKENIZER, num_sentinels=1)(jax.random.key(0), {"tokens": jnp.arange(40)}),
            "40 tokens have 2 corrupted spans, and there are 1 sentinels",
        ),
        (
            lambda: corrupt_spans(ByteTokenizer())(
                jax.random.key(0), {"tokens": jnp.arange(9), "segment_ids": jnp.ones(9)}
            ),
            "no padding token",
        ),
    ],
)
def test_a_mistake_is_one_clear_line(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_sentinels_that_do_not_fall_are_not_used():
    rising = CharacterTokenizer("abcdefgh")
    names = (*rising.token_names, "<extra_id_0>", "<extra_id_1>", "<extra_id_2>")
    named = SimpleNamespace(token_names=names, vocab_size=len(names), end_id=None, padding_id=None)
    assert corrupt_spans(named).num_sentinels == 1
    falling = SimpleNamespace(
        token_names=(*rising.token_names, "<extra_id_2>", "<extra_id_1>", "<extra_id_0>"),
        vocab_size=len(names),
        end_id=None,
        padding_id=None,
    )
    assert corrupt_spans(falling).num_sentinels == 3
